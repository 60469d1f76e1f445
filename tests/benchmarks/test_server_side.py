"""What the server's kernel says, read from its own tables."""

from __future__ import annotations

from benchmarks.server_side import between, parse

TEXT = """\
TcpExt: SyncookiesSent TCPTimeouts TCPLossProbes TCPFastRetrans TCPSlowStartRetrans TCPSpuriousRTOs
TcpExt: 0 {timeouts} 4 5 6 0
IpExt: InNoRoutes InOctets
IpExt: 0 123
Ip: Forwarding DefaultTTL
Ip: 2 64
Tcp: RtoAlgorithm RtoMin OutSegs RetransSegs
Tcp: 1 200 900 {resent}
0 0 198.51.100.2:9000 192.0.2.2:40000
\t cubic wscale:7,7 rto:256 rtt:55.5/1.2 ato:40 mss:1448 cwnd:193 rcv_rtt:7.5 minrtt:5.574
"""


def test_counters_and_what_the_connection_measures():
    sample = parse(TEXT.format(timeouts=3, resent=40), 1.5)
    assert sample.at == 1.5
    assert sample.counters["TCPTimeouts"] == 3
    assert sample.counters["RetransSegs"] == 40
    assert sample.measured == {"srtt_ms": 55.5, "rto_ms": 256, "min_rtt_ms": 5.574, "window_segments": 193}


def test_no_connection_measures_nothing():
    assert parse("".join(TEXT.format(timeouts=3, resent=40).partition("0 0 198")[:1]), 0.0).measured == {}


def test_growth():
    before, after = (parse(TEXT.format(timeouts=n, resent=10 * n), 0.0).as_json() for n in (1, 3))
    assert (between(before, after)["TCPTimeouts"], between(before, after)["RetransSegs"]) == (2, 20)
