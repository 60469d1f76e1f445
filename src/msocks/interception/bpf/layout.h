/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* What the programs share with Python (`msocks.interception.layout`; a test compares the two). */
#ifndef MSOCKS_INTERCEPTION_LAYOUT_H
#define MSOCKS_INTERCEPTION_LAYOUT_H

#include <linux/types.h>

#define COMM_BYTES 16

/* IPv4 addresses are IPv4-mapped IPv6 addresses (RFC 4291 section 2.5.5.2); addresses and ports in network order. */
struct address {
	__be32 words[4];
};

/* One per run, or host; set by the keeper. */
struct settings {
	__u64 netns_cookie;	/* sockets of other network namespaces are left alone */
	__be16 port4, port6;	/* the agent's, on the loopback addresses; 0: that family is left alone */
	__be16 dns4, dns6;	/* the keeper's resolver, on the loopback addresses; 0: resolution is the host's */
	__u8 enabled;
	__u8 no_udp;		/* no UDP but over loopback, and to the resolver */
	__u8 pad[6];
};

/* A destination that is left alone: key of a longest-prefix table. */
struct excluded {
	__u32 prefix_bits;
	struct address address;
};

/* A program is in connect(): the first SYN, or one that was sent again. It was held back. */
struct attempt {
	__u64 cookie;		/* names the socket */
	struct address local;
	struct address destination;
	__be16 local_port;
	__be16 destination_port;
	__be32 sequence;	/* of the SYN */
	__u32 pid, uid;
	__u8 is_ipv6;		/* how the SYN travels */
	__u8 pad[7];
	char comm[COMM_BYTES];
};

#endif
