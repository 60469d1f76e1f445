"""A UDP port for a client that has come over a link-local address, which means nothing without its interface."""

from __future__ import annotations

import asyncio
import socket

from tests.own_network import own_network

from msocks.protocol.socks5_udp import UdpDatagram, decode_udp, encode_udp
from msocks.transport.reactor import Reactor
from msocks.transport.udp_client_port import UdpClientPort
from msocks.values.endpoint import Endpoint

SERVER = Endpoint.parse("192.0.2.53:53")


async def test_a_link_local_address_is_that_of_its_interface():
    loop = asyncio.get_running_loop()
    received: list[tuple[Endpoint, bytes]] = []
    with own_network() as network:
        network.add_veth("v0")
        network.ip("address add fe80::5/64 dev v0 nodad")
        scope = socket.if_nametoindex("v0")
        with (
            socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as listener,
            socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as client,
            socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock,
        ):
            listener.bind(("::", 0))
            listener.listen()
            client.connect(("fe80::5", listener.getsockname()[1], 0, scope))
            accepted, _ = listener.accept()
            sock.bind(("fe80::5", 0, 0, scope))
            reactor = Reactor(loop)
            with accepted:
                port = UdpClientPort(
                    reactor, accepted, Endpoint.parse("[::]:0"), lambda *datagram: received.append(datagram)
                )
            assert str(port.bound.host) == "fe80::5"
            port.send(SERVER, b"before the client has sent anything")
            assert port.not_sent == 1
            sock.sendto(encode_udp(SERVER, b"question"), ("fe80::5", port.bound.port, 0, scope))
            async with asyncio.timeout(3):
                while not received:  # noqa: ASYNC110
                    await asyncio.sleep(0.002)
            port.send(SERVER, b"answer")
            answer = await asyncio.wait_for(loop.sock_recv(sock, 100), 3)
            port.close()
            reactor.close()
    assert received == [(SERVER, b"question")]
    assert decode_udp(answer) == UdpDatagram(SERVER, b"answer")
