/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Finds TCP in a packet, over Ethernet or on an interface without link-layer header, IPv4 or IPv6. */
#ifndef MSOCKS_PARSE_H
#define MSOCKS_PARSE_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "checksum.h"
#include "layout.h"

#define FIN 0x01
#define SYN 0x02
#define RST 0x04
#define PSH 0x08
#define ACK 0x10
#define ECE 0x40
#define CWR 0x80

#define IP_DONT_FRAGMENT 0x4000

enum parsed {
	NOT_TCP,
	TCP,
	TCP_MALFORMED,
	TCP_FRAGMENT,
	TCP_IP_OPTIONS,
	ICMP_ERROR,
};

struct packet {
	__u32 l3; /* offset of the IP header */
	__u32 l4;
	__u32 wire_length; /* from the IP header on, as that says */
	__u32 payload;
	__u32 sequence;
	__u32 acknowledgment;
	__u32 options; /* bytes of them */
	__u16 window;
	__u8 flags;
	__u8 family;
	__u8 hop_limit;
	struct flow_key key;
};

static __always_inline void map_ipv4(__u8 *address, __be32 ipv4)
{
	__builtin_memset(address, 0, 10);
	*(__u16 *)(address + 10) = 0xffff;
	*(__be32 *)(address + 12) = ipv4;
}

/* Makes `bytes` of the packet directly readable; NULL where it is shorter. Earlier pointers into it are void. */
static __always_inline void *pulled(struct __sk_buff *skb, __u32 bytes)
{
	void *data = (void *)(long)skb->data;

	if (data + bytes > (void *)(long)skb->data_end) {
		if (bpf_skb_pull_data(skb, bytes) < 0)
			return NULL;
		data = (void *)(long)skb->data;
		if (data + bytes > (void *)(long)skb->data_end)
			return NULL;
	}
	return data;
}

static __always_inline enum parsed parse_tcp(struct __sk_buff *skb, struct packet *packet, struct tcphdr *tcp,
					     __u32 headers)
{
	__u32 size = tcp->doff * 4;

	if (size < sizeof(*tcp) || packet->wire_length < headers + size)
		return TCP_MALFORMED;
	/* Ethernet pads short frames; nothing may be missing. */
	if (skb->len - packet->l3 < packet->wire_length)
		return TCP_MALFORMED;
	packet->payload = packet->wire_length - headers - size;
	packet->options = size - sizeof(*tcp);
	packet->sequence = bpf_ntohl(tcp->seq);
	packet->acknowledgment = bpf_ntohl(tcp->ack_seq);
	packet->window = bpf_ntohs(tcp->window);
	packet->flags = ((__u8 *)tcp)[13];
	return TCP;
}

/*
 * `l2` is the length of the link-layer header, a constant of the program. The key is filled in as for a packet that
 * arrives: the source is the remote end.
 */
static __always_inline enum parsed parse(struct __sk_buff *skb, struct packet *packet, const __u32 l2)
{
	void *data;

	packet->l3 = l2;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip;
		struct tcphdr *tcp;

		data = pulled(skb, l2 + sizeof(*ip) + sizeof(*tcp));
		if (!data)
			return NOT_TCP;
		ip = data + l2;
		if (ip->version != 4)
			return NOT_TCP;
		if (ip->protocol == IPPROTO_ICMP)
			return ICMP_ERROR;
		if (ip->protocol != IPPROTO_TCP)
			return NOT_TCP;
		tcp = (void *)(ip + 1);
		packet->family = 4;
		packet->hop_limit = ip->ttl;
		packet->l4 = l2 + sizeof(*ip);
		packet->wire_length = bpf_ntohs(ip->tot_len);
		if (!packet->wire_length) /* more than 64 KiB, by GRO on this host */
			packet->wire_length = skb->len - l2;
		map_ipv4(packet->key.remote, ip->saddr);
		map_ipv4(packet->key.local, ip->daddr);
		packet->key.remote_port = tcp->source;
		packet->key.local_port = tcp->dest;
		if (ip->frag_off & bpf_htons(0x1fff))
			return NOT_TCP;
		if (ip->ihl != 5) {
			__be16 ports[2]; /* behind the options */

			if (bpf_skb_load_bytes(skb, l2 + ip->ihl * 4, ports, sizeof(ports)) < 0)
				return NOT_TCP;
			packet->key.remote_port = ports[0];
			packet->key.local_port = ports[1];
			return TCP_IP_OPTIONS;
		}
		if (ip->frag_off & bpf_htons(0x2000))
			return TCP_FRAGMENT;
		if (fold((word_sum)((__u32 *)ip)[0] + ((__u32 *)ip)[1] + ((__u32 *)ip)[2] + ((__u32 *)ip)[3] +
			 ((__u32 *)ip)[4]) != 0xffff)
			return TCP_MALFORMED;
		return parse_tcp(skb, packet, tcp, sizeof(*ip));
	}
	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip;
		struct tcphdr *tcp;

		data = pulled(skb, l2 + sizeof(*ip) + sizeof(*tcp));
		if (!data)
			return NOT_TCP;
		ip = data + l2;
		if (ip->version != 6)
			return NOT_TCP;
		if (ip->nexthdr == IPPROTO_ICMPV6)
			return ICMP_ERROR;
		if (ip->nexthdr != IPPROTO_TCP)
			return NOT_TCP;
		tcp = (void *)(ip + 1);
		packet->family = 6;
		packet->hop_limit = ip->hop_limit;
		packet->l4 = l2 + sizeof(*ip);
		packet->wire_length = bpf_ntohs(ip->payload_len) + sizeof(*ip);
		if (!ip->payload_len)
			packet->wire_length = skb->len - l2;
		__builtin_memcpy(packet->key.remote, &ip->saddr, 16);
		__builtin_memcpy(packet->key.local, &ip->daddr, 16);
		packet->key.remote_port = tcp->source;
		packet->key.local_port = tcp->dest;
		return parse_tcp(skb, packet, tcp, sizeof(*ip));
	}
	return NOT_TCP;
}

/* For packets that leave: the destination is the remote end. */
static __always_inline void turn_around(struct flow_key *key)
{
	struct flow_key other = *key;

	__builtin_memcpy(key->remote, other.local, 16);
	__builtin_memcpy(key->local, other.remote, 16);
	key->remote_port = other.local_port;
	key->local_port = other.remote_port;
}

#endif
