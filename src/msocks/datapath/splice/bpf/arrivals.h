/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Packets that belong to no splice but may concern one: legs in their handshake, and ICMP errors. */
#ifndef MSOCKS_ARRIVALS_H
#define MSOCKS_ARRIVALS_H

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "checksum.h"
#include "layout.h"
#include "maps.h"
#include "parse.h"
#include "rewrite.h"

/* A greeting that offers MSOCKS alone, version 1, RECONNECT: docs/reference/protocol.md, "MSOCKS leg". */
#define RECONNECT_BYTES 131
#define RECONNECT_BEGINS 0x05018d01
#define RECONNECT_COMMAND 0x81

#define TCP_ESTABLISHED 1

#define ICMP_DEST_UNREACH 3
#define ICMPV6_DEST_UNREACH 1
#define ICMPV6_PKT_TOOBIG 2

/* No leg speaks ECN: what it marks, the other leg's end could not be told (RFC 3168 section 6.1.1). */
static __always_inline int without_ecn(struct __sk_buff *skb, const struct packet *packet)
{
	__u16 before, after;

	if (bpf_skb_load_bytes(skb, packet->l4 + 12, &before, sizeof(before)) < 0)
		return -1;
	after = before & ~bpf_htons(ECE | CWR);
	if (before == after)
		return 0;
	if (bpf_skb_store_bytes(skb, packet->l4 + 12, &after, sizeof(after), 0) < 0)
		return -1;
	return bpf_l4_csum_replace(skb, packet->l4 + offsetof(struct tcphdr, check), before, after, sizeof(after));
}

/* Whether a socket of this host has had nothing from its peer yet. */
static __always_inline int is_first_data(struct __sk_buff *skb, const struct packet *packet)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_tcp_sock *tcp;
	struct bpf_sock *sock;
	__u32 size;
	int first = 0;

	if (packet->family == 4) {
		__builtin_memcpy(&tuple.ipv4.saddr, packet->key.remote + 12, 4);
		__builtin_memcpy(&tuple.ipv4.daddr, packet->key.local + 12, 4);
		tuple.ipv4.sport = packet->key.remote_port;
		tuple.ipv4.dport = packet->key.local_port;
		size = sizeof(tuple.ipv4);
	} else {
		__builtin_memcpy(tuple.ipv6.saddr, packet->key.remote, 16);
		__builtin_memcpy(tuple.ipv6.daddr, packet->key.local, 16);
		tuple.ipv6.sport = packet->key.remote_port;
		tuple.ipv6.dport = packet->key.local_port;
		size = sizeof(tuple.ipv6);
	}
	sock = bpf_skc_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!sock)
		return 0;
	if (sock->state != TCP_ESTABLISHED) {
		first = 1; /* its handshake ends with this segment */
	} else {
		tcp = bpf_tcp_sock(sock);
		first = tcp && !tcp->bytes_received;
	}
	bpf_sk_release(sock);
	return first;
}

/*
 * Upstream bytes follow a RECONNECT in the same flight. This host's kernel may not acknowledge them: the mobile would
 * let go of what the server has not got.
 */
static __always_inline void cap_reconnect(struct __sk_buff *skb, const struct packet *packet)
{
	__u8 request[5];
	struct cap cap = {};

	if (packet->payload < RECONNECT_BYTES ||
	    bpf_skb_load_bytes(skb, packet->l4 + 20 + packet->options, request, sizeof(request)) < 0)
		return;
	if (request[0] != 0x05 || request[1] != 0x01 || request[2] != 0x8d || request[3] != 0x01 ||
	    request[4] != RECONNECT_COMMAND || !is_first_data(skb, packet))
		return;
	cap.request_end = packet->sequence + RECONNECT_BYTES;
	bpf_map_update_elem(&caps, &packet->key, &cap, BPF_ANY);
}

static __always_inline int arrival(struct __sk_buff *skb, const struct packet *packet)
{
	if (!bpf_map_lookup_elem(&listeners, &packet->key.local_port))
		return NEXT;
	if (packet->flags & SYN) {
		if (without_ecn(skb, packet) < 0)
			return DROP;
	} else if (packet->payload) {
		cap_reconnect(skb, packet);
	}
	return NEXT;
}

/* An error about a segment that left on a spliced leg: the daemon tells the end that had sent it. */
static __always_inline int icmp_error(struct __sk_buff *skb, const __u32 l2)
{
	struct flow_key key = {};
	struct flow *flow;
	__u32 quoted;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr ip;
		__u8 type;

		if (bpf_skb_load_bytes(skb, l2, &ip, sizeof(ip)) < 0 || ip.ihl != 5)
			return NEXT;
		if (bpf_skb_load_bytes(skb, l2 + sizeof(ip), &type, sizeof(type)) < 0 || type != ICMP_DEST_UNREACH)
			return NEXT;
		quoted = l2 + sizeof(ip) + 8;
		if (bpf_skb_load_bytes(skb, quoted, &ip, sizeof(ip)) < 0 || ip.ihl != 5 || ip.protocol != IPPROTO_TCP)
			return NEXT;
		map_ipv4(key.local, ip.saddr);
		map_ipv4(key.remote, ip.daddr);
		quoted += sizeof(ip);
	} else {
		struct ipv6hdr ip;
		__u8 type;

		if (bpf_skb_load_bytes(skb, l2 + sizeof(ip), &type, sizeof(type)) < 0 ||
		    (type != ICMPV6_PKT_TOOBIG && type != ICMPV6_DEST_UNREACH))
			return NEXT;
		quoted = l2 + sizeof(ip) + 8;
		if (bpf_skb_load_bytes(skb, quoted, &ip, sizeof(ip)) < 0 || ip.nexthdr != IPPROTO_TCP)
			return NEXT;
		__builtin_memcpy(key.local, &ip.saddr, 16);
		__builtin_memcpy(key.remote, &ip.daddr, 16);
		quoted += sizeof(ip);
	}
	if (bpf_skb_load_bytes(skb, quoted, &key.local_port, 2) < 0 ||
	    bpf_skb_load_bytes(skb, quoted + 2, &key.remote_port, 2) < 0)
		return NEXT;
	flow = bpf_map_lookup_elem(&flows, &key);
	if (flow) {
		struct event event = event_of(EVENT_ICMP, flow, 0);

		tell_packet(skb, &event, l2, skb->len - l2);
	}
	return NEXT;
}

#endif
