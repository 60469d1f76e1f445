/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * What the kernel's half and the daemon's half of the splice share. `layout.py` is the same in Python; a test compares
 * both by the object's BTF. A change of any structure here needs a new LAYOUT_VERSION: pinned maps of an older one are
 * not adopted.
 *
 * Offsets are absolute positions in one direction's stream of payload bytes, 64 bits; the FIN occupies one place behind
 * the last byte. *Up* is mobile to server, *down* server to mobile.
 */
#ifndef MSOCKS_LAYOUT_H
#define MSOCKS_LAYOUT_H

#include <linux/types.h>

#define LAYOUT_VERSION 2

/* SO_MARK of the daemon's sockets: what carries it was sent by a socket that exists, or crafted by the daemon. */
#define MARK_OF_DAEMON 0x4d534f43
/* skb->tc_index of a packet that the ingress program has rewritten: the egress program lets it pass. */
#define TC_INDEX_OF_SPLICE 0x4d53
/* The same, and the way that it takes is to be noted. */
#define TC_INDEX_TO_LEARN 0x4d54

#define LEG_SERVER 0 /* legs[0]; the mobile legs take turns in legs[1] and legs[2] */
#define LEGS 3

#define NO_FIN (~0ULL)
#define NO_SPLIT (~0ULL)

enum session_state {
	SESSION_FREE,
	SESSION_OPENING, /* the daemon prepares it; the server leg is a kernel socket */
	SESSION_OPEN,
	SESSION_CLOSING,   /* both FINs are acknowledged: late segments still pass */
	SESSION_RESET,	   /* over: what comes is dropped */
	SESSION_RESETTING, /* over, and the ends have still to be told: what they say is an event */
};

enum leg_state {
	LEG_NONE,
	LEG_HANDSHAKE, /* a kernel socket answers; its reply, when it passes the egress hook, makes the leg live */
	LEG_LIVE,
	LEG_STOPPED,
};

enum leg_flags {
	LEG_TIMESTAMPS = 1 << 0,
	LEG_SACK = 1 << 1,
	LEG_SHIFT_IN_SET = 1 << 2,
	LEG_SHIFT_OUT_SET = 1 << 3,
	LEG_NOTED = 1 << 4, /* the kernel's handshake ACK (server leg) or reply (mobile leg) has been seen */
	LEG_REPLY_ACKED = 1 << 5,
	LEG_SUCCEEDED = 1 << 6, /* the listener has answered a SYN with this leg's addresses: see `consumed` */
	LEG_AWAITED = 1 << 7, /* the next word of its kernel socket's tells where its numbers stand */
};

enum session_flags {
	SESSION_RESUMABLE = 1 << 0, /* an RST of the mobile's side detaches the leg, and is not passed on */
	SESSION_STOPPED = 1 << 1,   /* no mobile leg carries */
	SESSION_STRIP_TIMESTAMPS = 1 << 2, /* from the SYN to the server: the mobile leg has none */
	SESSION_RESUMING = 1 << 3, /* a later leg stands, and the server has not sent from its beginning on */
	SESSION_CLOSED_WINDOW = 1 << 4, /* while parked, the server was told a window of zero */
};

enum event_type {
	EVENT_LEG_RESET = 1, /* an exact RST of the mobile's side */
	EVENT_SERVER_RESET,
	EVENT_FINISHED, /* both FINs are acknowledged */
	EVENT_FREED,	/* the entry has expired; its slot and its port can be used again */
	EVENT_SPOKE, /* in SESSION_RESETTING; `offset` is the sequence number that it acknowledged */
	EVENT_TOO_BIG,	/* `packet` as it came does not fit into `offset` bytes, the MTU of the other leg */
	EVENT_ICMP,	/* `packet` is an ICMP error about a segment that left on this leg */
	EVENT_NO_PATH,	/* what arrives on this leg finds no way on to the other one's peer */
	EVENT_REPLY_MISSING, /* the mobile has data of the stream but not the reply before it */
	EVENT_INEXACT_RESET, /* the server says RST with a number that it may not have: it is to be asked */
	EVENT_HELD, /* a copy of a segment of the server's, in the ring `held` */
};

enum drop_reason {
	DROP_MALFORMED,
	DROP_IP_OPTIONS,
	DROP_FRAGMENT,
	DROP_HOP_LIMIT,
	DROP_STALE_FLOW,      /* the session is over, or the slot another's */
	DROP_STALE_LEG,	      /* the leg was replaced */
	DROP_STOPPED,	      /* no mobile leg carries at the moment */
	DROP_OLD_SEQUENCE,
	DROP_BEYOND_WINDOW,
	DROP_OLD_ACK,
	DROP_ACK_OF_UNSENT,
	DROP_NO_ACK,
	DROP_INEXACT_RESET,
	DROP_RESET_DETACHES,  /* an RST of a mobile leg that can be followed by another */
	DROP_TOO_BIG,
	DROP_NO_PATH,
	DROP_FAMILY_CHANGE,
	DROP_KERNEL_SPOKE,    /* the host's kernel for a spliced connection */
	DROP_UNTIMELY_ACK,    /* the host's kernel, of bytes that only the server may acknowledge */
	DROP_OPTIONS,
	DROP_CHECKSUM,
	DROP_OUT_OF_TURN,     /* a later leg stands, and the server has not sent yet what belongs at its beginning */
	DROP_EARLY_ACK,	      /* of the new leg's, while the old one hands over: noted, and told later */
	DROP_REASONS,
};

struct flow_key { /* as a packet that arrives shows it; IPv4 as ::ffff:a.b.c.d */
	__u8 remote[16];
	__u8 local[16];
	__be16 remote_port;
	__be16 local_port;
} __attribute__((aligned(4)));

struct flow {
	__u32 slot;
	__u32 incarnation; /* of the slot: an entry that was left behind finds another number there */
	__u32 leg;
};

struct opening_key { /* a server leg whose local address is not known yet */
	__u8 remote[16];
	__be16 remote_port;
	__be16 local_port;
} __attribute__((aligned(4)));

struct cap {
	__u32 request_end; /* sequence number behind the RECONNECT: the kernel may acknowledge so far */
	__u32 acknowledged;
};

struct path { /* how what leaves on a leg gets to its next hop */
	__u32 ifindex;
	__u16 mtu;
	__u8 ethernet;
	__u8 known;
	__u8 next_hop[6];
	__u8 own[6];
	__u32 misses; /* packets that the kernel was to send, since it last did */
	__u64 fresh_until; /* ns of CLOCK_MONOTONIC; then the kernel sends one packet */
};

struct leg {
	__u8 remote[16];
	__u8 local[16];
	__be16 remote_port;
	__be16 local_port;
	__u8 family; /* 4 or 6 */
	__u8 state;
	__u8 in_scale;	/* shift of the windows that the peer offers */
	__u8 out_scale; /* shift of the windows that this host offers it */
	__u32 flags;
	__u32 generation;
	__u32 in_base;	/* sequence number of stream offset 0, modulo 2^32, of what arrives */
	__u32 out_base; /* the same of what leaves; before the reply, how many bytes this host has sent, modulo 2^32 */
	__u64 begins_in;  /* A: the first offset that can arrive */
	__u64 begins_out; /* D: the first offset that can leave; a smaller ACK acknowledges the reply only */
	__u64 arrived;	  /* the end of what has arrived: no ACK that leaves goes beyond */
	__u32 shift_in;	 /* mobile legs: added to the TSval of what arrives */
	__u32 shift_out; /* mobile legs: added to the TSval of what leaves */
	__u32 ts_in;	 /* newest TSval that has arrived */
	__u32 ts_out;	 /* newest TSval that has left */
	__u64 ts_in_at;	 /* ns */
	__u64 ts_out_at;
	__u32 reply_length; /* bytes of the reply, and of what the daemon sends behind it in one piece */
	__u32 consumed;	    /* bytes that the daemon has read from the socket before the stream; with LEG_SUCCEEDED,
			       the ACK that ends the handshake of the connection which has these addresses next */
	__u32 round_trip_ms;
	__u16 path_mtu; /* from ICMP; 0 unknown */
	__u16 announced; /* server leg: no larger segment is asked of the server in the SYN; 0 as the kernel says */
	struct path path;
};

struct stream {
	__u64 sent;  /* the end of what was seen, FIN included */
	__u64 acked; /* the highest ACK that was let through, FIN included; never decreases */
	__u64 edge;  /* the right edge of the window, the highest ever offered */
	__u64 fin;   /* offset of the FIN, or NO_FIN */
	__u64 packets;
	__u32 widest; /* the widest window ever offered, bytes */
	__u32 dropped;
};

/* One mobile leg gives way to another while both live: handover.h. None is under way where `from_leg` is 0. */
struct handover {
	__u64 split;	/* downstream: the old leg brings what lies before, the new one the rest; or NO_SPLIT */
	__u64 up_split; /* A: the same upstream */
	__u64 acked;	/* the highest ACK of the new leg: told once the old one has brought all */
	__u64 room;	/* the right edge that the new leg has offered, counted from the split */
	__u64 allowance; /* the widest window that the server is offered, 0 without limit; outlasts the handover */
	__u64 since;	/* ns: when it was set */
	__u64 timed_end; /* the end of a segment on the new leg whose round trip is measured, or 0 */
	__u64 timed_at;	/* ns */
	__u64 timed_from; /* what the new leg had acknowledged then */
	__u64 least_ns;	  /* the least round trip of the new leg */
	__u32 base;	    /* sequence number of the new leg at the split */
	__u32 reply_length; /* of the reply that is to come before the stream on the new leg */
	__u8 from_leg; /* which leg hands over, or 0; until the new one is attached it is the active one */
	__u8 to;   /* to which, or 0 as long as its numbers are not known */
	__u8 timed_trip; /* the round trip is measured, and what is acknowledged goes on to be */
	__u8 unused[5];
};

struct session {
	struct leg legs[LEGS];
	struct stream up;
	struct stream down;
	__u8 state;
	__u8 active; /* which mobile leg carries */
	__u8 flags;
	__u8 finished;
	__u32 incarnation;
	__u64 last_ns; /* when the last packet passed */
	__u64 complained_ns; /* when the last EVENT_TOO_BIG or EVENT_NO_PATH was sent */
	__u64 mobile_edge; /* downstream: the right edge that the leg which carries has offered */
	/* The daemon's: so many bytes from the beginning of each stream this host has acknowledged in the place of their
	 * receiver. */
	__u32 owed_up;
	__u32 owed_down;
	__u64 parked_ns; /* since when the session is parked; 0 where it is not */
	__u64 held_ns; /* when a segment was last copied to the daemon */
	__u32 held; /* segments copied since the last leg was lost, or last spoke after a silence */
	__u32 woke_ms; /* when the mobile last spoke after a silence with data on the way; 0 where it never did */
	struct handover handover;
};

struct config {
	__u16 first_port; /* of the server legs' range, host order */
	__u16 last_port;
	__u32 slots;
	__u64 opening_ns; /* how long an entry may stay without a packet in each state */
	__u64 open_ns;
	__u64 half_closed_ns;
	__u64 closing_ns;
	__u64 reset_ns;
};

struct told_host {
	__u8 address[16];
};

struct told_mtu {
	__u64 until_ns; /* CLOCK_MONOTONIC */
	__u32 mtu;
	__u32 unused;
};

#define EVENT_PACKET_BYTES 1280 /* no ICMP error is longer (RFC 4443 section 2.4) */

struct event {
	__u32 type;
	__u32 slot;
	__u32 incarnation;
	__u32 leg;
	__u64 offset;
};

struct packet_event {
	struct event event;
	__u32 length; /* of the packet on the wire, from its IP header */
	__u32 copied; /* bytes of it below */
	__u8 packet[EVENT_PACKET_BYTES];
};

#define HELD_PACKET_BYTES 16384 /* of a larger one, which the kernel has put together, the beginning is held */

struct held_packet {
	struct event event; /* offset: of its first byte in the stream */
	__u64 arrived_ns;
	__u32 tsval;
	__u32 headers; /* bytes of IP and TCP before the payload */
	__u32 copied; /* bytes of it below, up to the end of a segment */
	__u32 segment; /* bytes of payload of each of its segments */
	__u8 packet[HELD_PACKET_BYTES];
};

struct busy { /* one a processor and cache line: odd while a packet is inside */
	__u64 count;
	__u64 unused[7];
};

#endif
