"""The context that a test run of a program gets beside the packet: struct __sk_buff of linux/bpf.h."""

from __future__ import annotations

import ctypes

_U32 = ctypes.c_uint32


class PacketContext(ctypes.Structure):
    """`bytes(PacketContext(mark=1))` goes into `libbpf.run`; `PacketContext.from_buffer_copy` reads what comes out.

    A test run takes mark, priority, ingress_ifindex, ifindex, cb, tstamp, wire_len, gso_segs, gso_size and hwtstamp;
    the kernel refuses (EINVAL) anything else that is not zero, and gives back those but gso_size. The protocol and the
    length come of the packet; tc_index and VLAN tags can only be had on an interface.
    """

    mark: int
    priority: int
    ifindex: int
    wire_len: int
    gso_segs: int
    gso_size: int
    _fields_ = (
        ("len", _U32),
        ("pkt_type", _U32),
        ("mark", _U32),
        ("queue_mapping", _U32),
        ("protocol", _U32),
        ("vlan_present", _U32),
        ("vlan_tci", _U32),
        ("vlan_proto", _U32),
        ("priority", _U32),
        ("ingress_ifindex", _U32),
        ("ifindex", _U32),
        ("tc_index", _U32),
        ("cb", _U32 * 5),
        ("hash", _U32),
        ("tc_classid", _U32),
        ("data", _U32),
        ("data_end", _U32),
        ("napi_id", _U32),
        ("socket", _U32 * 12),
        ("data_meta", _U32),
        ("flow_keys", ctypes.c_uint64),
        ("tstamp", ctypes.c_uint64),
        ("wire_len", _U32),
        ("gso_segs", _U32),
        ("sk", ctypes.c_uint64),
        ("gso_size", _U32),
        ("tstamp_type", ctypes.c_uint8),
        ("unused", ctypes.c_uint8 * 3),
        ("hwtstamp", ctypes.c_uint64),
    )
