/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Makes a segment that came on one leg one of the other leg, and sends it on. It decides nothing. */
#ifndef MSOCKS_REWRITE_H
#define MSOCKS_REWRITE_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "checksum.h"
#include "layout.h"
#include "maps.h"
#include "options.h"
#include "parse.h"
#include "path.h"

#define NEXT (-1) /* TCX_NEXT, TC_ACT_UNSPEC: the host's kernel goes on with the packet */
#define DROP 2	  /* TCX_DROP, TC_ACT_SHOT */

struct segment { /* as it is to leave */
	__u32 sequence;
	__u32 acknowledgment;
	__u32 tsval;
	__u32 tsecr;
	word_sum sum; /* of what has been changed in the TCP header before */
	__u16 window;
	__u8 write_timestamps; /* behind two NOPs */
	__u8 strip_timestamps; /* from there */
	__u8 clear_flags;      /* of the TCP header's low eight */
};

static __always_inline word_sum difference_of_addresses(const __u8 *before, const __u8 *after)
{
	const __u32 *old = (const __u32 *)before, *new = (const __u32 *)after;
	word_sum sum = 0;
	int i;

#pragma unroll
	for (i = 0; i < 4; i++)
		sum = exchange(sum, old[i], new[i]);
	return sum;
}

/* An IPv4 address is ::ffff:a.b.c.d here; in a pseudo-header it is a.b.c.d. The ffff adds up to nothing (RFC 1071). */
static __always_inline word_sum change_of_pseudo_header(const struct flow_key *key, const struct leg *out)
{
	return difference_of_addresses(key->remote, out->local) + difference_of_addresses(key->local, out->remote);
}

static __always_inline __u32 ipv4_of(const __u8 *address)
{
	return *(const __u32 *)(address + 12);
}

/* The IP header, same family. */
static __always_inline void rewrite_ip(void *header, const struct leg *out)
{
	if (out->family == 4) {
		struct iphdr *ip = header;
		word_sum sum = 0;
		__u16 before = *(__u16 *)&ip->ttl;

		sum = exchange(sum, ip->saddr, ipv4_of(out->local));
		sum = exchange(sum, ip->daddr, ipv4_of(out->remote));
		ip->ttl--;
		sum = exchange(sum, before, *(__u16 *)&ip->ttl);
		ip->saddr = ipv4_of(out->local);
		ip->daddr = ipv4_of(out->remote);
		ip->check = changed_checksum(ip->check, sum);
	} else {
		struct ipv6hdr *ip = header;

		ip->hop_limit--;
		__builtin_memcpy(&ip->saddr, out->local, 16);
		__builtin_memcpy(&ip->daddr, out->remote, 16);
	}
}

/* Another family: the header is made anew; the old one's checksum was right. */
__noinline int change_family(struct __sk_buff *skb, struct packet *packet, struct leg *out)
{
	__u32 l2, service, length;
	void *data;

	if (!packet || !out)
		return -1;
	l2 = packet->l3;
	if (l2 && l2 != ETH_HLEN)
		return -1;
	/* BIG TCP: lengths that the other family has no place for. */
	if (packet->wire_length > 65535 - 40)
		return -1;
	if (out->family == 6) {
		struct ipv6hdr *made;
		struct iphdr *ip;

		data = pulled(skb, l2 + sizeof(*ip) + sizeof(struct tcphdr));
		if (!data)
			return -1;
		ip = data + l2;
		service = ip->tos;
		length = packet->wire_length - sizeof(*ip);
		if (bpf_skb_change_proto(skb, bpf_htons(ETH_P_IPV6), 0) < 0)
			return -1;
		data = pulled(skb, l2 + sizeof(*made) + sizeof(struct tcphdr));
		if (!data)
			return -1;
		made = data + l2;
		*(__be32 *)made = bpf_htonl(6 << 28 | service << 20);
		made->payload_len = bpf_htons(length);
		made->nexthdr = IPPROTO_TCP;
		made->hop_limit = packet->hop_limit - 1;
		__builtin_memcpy(&made->saddr, out->local, 16);
		__builtin_memcpy(&made->daddr, out->remote, 16);
		packet->l4 = l2 + sizeof(*made);
	} else {
		struct ipv6hdr *ip;
		struct iphdr *made;

		data = pulled(skb, l2 + sizeof(*ip) + sizeof(struct tcphdr));
		if (!data)
			return -1;
		ip = data + l2;
		service = bpf_ntohl(*(__be32 *)ip) >> 20 & 0xff;
		length = packet->wire_length - sizeof(*ip);
		if (bpf_skb_change_proto(skb, bpf_htons(ETH_P_IP), 0) < 0)
			return -1;
		data = pulled(skb, l2 + sizeof(*made) + sizeof(struct tcphdr));
		if (!data)
			return -1;
		made = data + l2;
		made->version = 4;
		made->ihl = 5;
		made->tos = service;
		made->tot_len = bpf_htons(length + sizeof(*made));
		made->id = 0; /* with DF set it is not looked at (RFC 6864) */
		made->frag_off = bpf_htons(IP_DONT_FRAGMENT);
		made->ttl = packet->hop_limit - 1;
		made->protocol = IPPROTO_TCP;
		made->check = 0;
		made->saddr = ipv4_of(out->local);
		made->daddr = ipv4_of(out->remote);
		made->check = ~fold((word_sum)((__u32 *)made)[0] + ((__u32 *)made)[1] + ((__u32 *)made)[2] +
				    ((__u32 *)made)[3] + ((__u32 *)made)[4]);
		packet->l4 = l2 + sizeof(*made);
	}
	if (l2) {
		data = pulled(skb, ETH_HLEN);
		if (!data)
			return -1;
		((struct ethhdr *)data)->h_proto = bpf_htons(out->family == 6 ? ETH_P_IPV6 : ETH_P_IP);
	}
	return 0;
}

static __always_inline word_sum rewrite_tcp(struct tcphdr *tcp, const struct leg *out, const struct segment *segment)
{
	__u32 *words = (__u32 *)tcp;
	__u32 before[4] = { words[0], words[1], words[2], words[3] };
	word_sum sum = segment->sum;

	tcp->source = out->local_port;
	tcp->dest = out->remote_port;
	tcp->seq = bpf_htonl(segment->sequence);
	tcp->ack_seq = bpf_htonl(segment->acknowledgment);
	tcp->window = bpf_htons(segment->window);
	((__u8 *)tcp)[13] &= ~segment->clear_flags;
	sum = exchange(sum, before[0], words[0]);
	sum = exchange(sum, before[1], words[1]);
	sum = exchange(sum, before[2], words[2]);
	return exchange(sum, before[3], words[3]);
}

static __always_inline word_sum rewrite_timestamps(__u32 *words, const struct segment *segment, word_sum sum)
{
	__u32 tsval = bpf_htonl(segment->tsval), tsecr = bpf_htonl(segment->tsecr);

	if (segment->strip_timestamps) {
		sum = exchange(sum, words[0], 0x01010101);
		words[0] = 0x01010101;
		tsval = tsecr = 0x01010101;
	}
	sum = exchange(sum, words[1], tsval);
	sum = exchange(sum, words[2], tsecr);
	words[1] = tsval;
	words[2] = tsecr;
	return sum;
}

/* Rewrites everything but the link layer. */
__noinline int rewrite(struct __sk_buff *skb, struct packet *packet, struct leg *out, const struct segment *segment,
		       __u32 l2)
{
	__u32 timestamps, same_family;
	word_sum sum;
	void *data;

	if (!packet || !out || !segment || (l2 && l2 != ETH_HLEN))
		return -1;
	timestamps = segment->write_timestamps || segment->strip_timestamps ? TIMESTAMPS_ALONE : 0;
	same_family = packet->family == out->family;
	if (!same_family && change_family(skb, packet, out) < 0)
		return -1;
	if (out->family == 4) {
		data = pulled(skb, l2 + sizeof(struct iphdr) + sizeof(struct tcphdr) + timestamps);
		if (!data)
			return -1;
		if (same_family)
			rewrite_ip(data + l2, out);
		data += l2 + sizeof(struct iphdr);
	} else {
		data = pulled(skb, l2 + sizeof(struct ipv6hdr) + sizeof(struct tcphdr) + timestamps);
		if (!data)
			return -1;
		if (same_family)
			rewrite_ip(data + l2, out);
		data += l2 + sizeof(struct ipv6hdr);
	}
	sum = rewrite_tcp(data, out, segment);
	if (timestamps) {
		if (data + sizeof(struct tcphdr) + TIMESTAMPS_ALONE > (void *)(long)skb->data_end)
			return -1;
		sum = rewrite_timestamps(data + sizeof(struct tcphdr), segment, sum);
	}
	/* Right for whole checksums and for those that the interface is to complete: there only the second counts. */
	if (bpf_l4_csum_replace(skb, packet->l4 + offsetof(struct tcphdr, check), 0, fold_to_word(sum), 0) < 0)
		return -1;
	return bpf_l4_csum_replace(skb, packet->l4 + offsetof(struct tcphdr, check), 0,
				   fold_to_word(change_of_pseudo_header(&packet->key, out)), BPF_F_PSEUDO_HDR);
}

/* Whether the packet does not fit into what the next link takes; `headers` are IP and TCP as they are to leave. */
static __always_inline __u32 too_big_for(struct __sk_buff *skb, const struct packet *packet, const struct leg *out)
{
	__u32 mtu = out->path.mtu, length = packet->wire_length;

	if (out->path_mtu && (!mtu || out->path_mtu < mtu))
		mtu = out->path_mtu;
	if (!mtu)
		return 0;
	if (skb->gso_size)
		length = length - packet->payload + skb->gso_size;
	if (packet->family == 4 && out->family == 6)
		length += 20;
	if (packet->family == 6 && out->family == 4)
		length -= 20;
	return length > mtu ? mtu : 0;
}

static __always_inline int forward(struct __sk_buff *skb, struct leg *out, const struct flow *flow,
				   struct session *session, __u64 now, const __u32 l2)
{
	struct path *path = &out->path;
	struct ethhdr *ethernet;

	skb->tc_index = TC_INDEX_OF_SPLICE;
	if (l2 == 0 && path->ethernet) {
		if (bpf_skb_change_head(skb, ETH_HLEN, 0) < 0)
			return -1;
		ethernet = pulled(skb, ETH_HLEN);
		if (!ethernet)
			return -1;
		ethernet->h_proto = bpf_htons(out->family == 6 ? ETH_P_IPV6 : ETH_P_IP);
	}
	if (now > path->fresh_until && path->ethernet) {
		path->fresh_until = now + FRESH_NS;
		if (path->misses++ >= MISSES_TELL && may_complain(session, now))
			tell(EVENT_NO_PATH, flow, 0);
		skb->tc_index = TC_INDEX_TO_LEARN;
		return bpf_redirect_neigh(path->ifindex, NULL, 0, 0);
	}
	if (path->ethernet) {
		ethernet = pulled(skb, ETH_HLEN);
		if (!ethernet)
			return -1;
		__builtin_memcpy(ethernet->h_dest, path->next_hop, 6);
		__builtin_memcpy(ethernet->h_source, path->own, 6);
	}
	return bpf_redirect(path->ifindex, 0);
}

#endif
