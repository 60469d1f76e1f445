/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The server's segments while no mobile leg carries. A few are copied to the daemon, which delivers them when a leg
 * stands; none is acknowledged. In a longer outage the server is told a window of zero, here and without the daemon: so
 * it probes instead of giving up (RFC 9293 section 3.8.6.1).
 */
#ifndef MSOCKS_PARK_H
#define MSOCKS_PARK_H

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
#include "rewrite.h"
#include "streams.h"

#define HELD_USUAL_BYTES 2048 /* so large is the copy of a packet that was not put together */
#define HELD_MOST 8 /* packets of a session, from one leg to the next */
#define HOLD_AGAIN_NS 100000000ULL /* of a session whose leg is silent, at most one in so long */
#define SILENT_NS 300000000ULL /* a leg from which nothing came for so long may be gone, though nobody has said so */
#define QUIET_NS 100000000ULL /* for so long nothing came: what a server sends now without an ACK is a tail loss probe */
#define WOKE_MS 300 /* a leg that speaks after a silence may be followed by another for so long */
#define CLOSE_WINDOW_NS 1000000000ULL /* parked for so long, the server is told a window of zero */
#define ANSWER_NS (24 * 3600 * 1000000000ULL) /* no longer: a mobile that has vanished must not hold a server for ever */
#define ANSWER_TTL 64

static __always_inline void park(struct session *session, __u64 now)
{
	session->held = 0;
	session->parked_ns = now;
	session->flags |= SESSION_STOPPED;
}

/* The TSval of a segment; `otherwise` where its options are not laid out as usual. */
__noinline __u32 tsval_of(struct __sk_buff *skb, const struct packet *packet, __u32 otherwise)
{
	__u32 words[2];

	if (!packet || packet->options != TIMESTAMPS_ALONE ||
	    bpf_skb_load_bytes(skb, packet->l4 + sizeof(struct tcphdr), words, sizeof(words)) < 0 ||
	    words[0] != TIMESTAMPS_BEHIND_NOPS)
		return otherwise;
	return bpf_ntohl(words[1]);
}

static __always_inline int put_copy(struct __sk_buff *skb, struct held_packet *copy, const struct packet *packet,
				    const struct flow *flow, __u64 offset, const __u32 size)
{
	__u32 headers = packet->l4 - packet->l3 + sizeof(struct tcphdr) + packet->options, have;

	copy->event = event_of(EVENT_HELD, flow, offset);
	copy->arrived_ns = bpf_ktime_get_ns();
	copy->headers = headers;
	copy->segment = skb->gso_size ? skb->gso_size : packet->payload;
	have = packet->payload;
	if (headers + have > size && copy->segment) /* whole segments */
		have = (size - headers) / copy->segment * copy->segment;
	have += headers;
	copy->copied = have;
	have -= 1;
	/* The verifier wants to see both bounds at the call. */
	asm volatile("" : "+r"(have));
	if (have >= size || bpf_skb_load_bytes(skb, packet->l3, copy->packet, have + 1) < 0) {
		bpf_ringbuf_discard(copy, 0);
		return -1;
	}
	bpf_ringbuf_submit(copy, 0);
	return 0;
}

/* Copies a packet with payload to the daemon. */
__noinline int hold(struct __sk_buff *skb, const struct packet *packet, const struct flow *flow, __u64 offset,
		    __u32 tsval)
{
	struct held_packet *copy;

	if (!packet || !flow)
		return -1;
	if (packet->wire_length <= HELD_USUAL_BYTES) {
		copy = bpf_ringbuf_reserve(&held, offsetof(struct held_packet, packet) + HELD_USUAL_BYTES, 0);
		if (!copy)
			return -1;
		copy->tsval = tsval;
		return put_copy(skb, copy, packet, flow, offset, HELD_USUAL_BYTES);
	}
	copy = bpf_ringbuf_reserve(&held, sizeof(*copy), 0);
	if (!copy)
		return -1;
	copy->tsval = tsval;
	return put_copy(skb, copy, packet, flow, offset, HELD_PACKET_BYTES);
}

/*
 * The two halves make the server's packet the mobile's answer to it: an ACK of what was acknowledged before, with a
 * window of zero. Without a link-layer header `l2` is 0.
 */
__noinline int answer_ip(struct __sk_buff *skb, const struct packet *packet, const struct session *session, __u32 l2)
{
	const struct leg *server;
	__u32 tcp_bytes, ip_bytes;
	void *data;

	if (!packet || !session || (l2 && l2 != ETH_HLEN))
		return -1;
	server = &session->legs[LEG_SERVER];
	tcp_bytes = sizeof(struct tcphdr) + (server->flags & LEG_TIMESTAMPS ? TIMESTAMPS_ALONE : 0);
	ip_bytes = packet->family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	if (packet->options + sizeof(struct tcphdr) < tcp_bytes ||
	    bpf_skb_change_tail(skb, l2 + ip_bytes + tcp_bytes, 0) < 0)
		return -1;
	data = pulled(skb, l2 + sizeof(struct ipv6hdr));
	if (!data)
		return -1;
	if (packet->family == 4) {
		struct iphdr *ip = data + l2;

		ip->tot_len = bpf_htons(sizeof(*ip) + tcp_bytes);
		ip->ttl = ANSWER_TTL;
		ip->tos = 0;
		ip->saddr = ipv4_of(server->local);
		ip->daddr = ipv4_of(server->remote);
		ip->check = 0;
		ip->check = ~fold((__u32)bpf_csum_diff(NULL, 0, (__u32 *)ip, sizeof(*ip), 0));
	} else {
		struct ipv6hdr *ip = data + l2;

		*(__be32 *)ip = bpf_htonl(6 << 28);
		ip->payload_len = bpf_htons(tcp_bytes);
		ip->hop_limit = ANSWER_TTL;
		__builtin_memcpy(&ip->saddr, server->local, 16);
		__builtin_memcpy(&ip->daddr, server->remote, 16);
	}
	if (l2) {
		struct ethhdr *ethernet = data;
		__u8 address[6];

		__builtin_memcpy(address, ethernet->h_dest, 6);
		__builtin_memcpy(ethernet->h_dest, ethernet->h_source, 6);
		__builtin_memcpy(ethernet->h_source, address, 6);
	}
	return 0;
}

__noinline int answer_tcp(struct __sk_buff *skb, const struct packet *packet, const struct session *session,
			  __u32 tsval, __u32 l2)
{
	const struct leg *server;
	__u32 at, bytes, before;
	__u32 words[8] = {};
	word_sum sum;
	__u16 made;

	if (!packet || !session || (l2 && l2 != ETH_HLEN))
		return -1;
	server = &session->legs[LEG_SERVER];
	bytes = sizeof(struct tcphdr) + (server->flags & LEG_TIMESTAMPS ? TIMESTAMPS_ALONE : 0);
	at = l2 + (packet->family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr));
	before = packet->wire_length + l2 - at;
	words[0] = server->local_port | (__u32)server->remote_port << 16;
	words[1] = bpf_htonl(server->out_base + (__u32)session->up.acked);
	words[2] = bpf_htonl(server->in_base + (__u32)session->down.acked);
	words[3] = bpf_htonl(bytes / 4 << 28 | ACK << 16);
	if (server->flags & LEG_TIMESTAMPS) {
		words[5] = TIMESTAMPS_BEHIND_NOPS;
		words[6] = bpf_htonl(server->ts_out);
		words[7] = bpf_htonl(tsval);
	}
	/* As if the segment were as long as the old one: the length is changed below, in either kind of checksum. */
	sum = bpf_htonl(IPPROTO_TCP) + (word_sum)bpf_htonl(before);
	sum += (__u32)bpf_csum_diff(NULL, 0, words, sizeof(words), 0);
	/* A leg begins with its two addresses. */
	sum += (__u32)bpf_csum_diff(NULL, 0, (void *)server, 2 * sizeof(server->local), 0);
	made = fold(sum);
	if (bpf_skb_load_bytes(skb, at + offsetof(struct tcphdr, check), (__u8 *)words + 16, 2) < 0)
		return -1;
	/* A whole checksum becomes that of the new header; one that the interface is to complete stays. */
	sum = (word_sum)(__u16)words[4] + made;
	if (bpf_skb_store_bytes(skb, at, words, 20, 0) < 0)
		return -1;
	if (bytes > 20 && bpf_skb_store_bytes(skb, at + 20, words + 5, TIMESTAMPS_ALONE, 0) < 0)
		return -1;
	at += offsetof(struct tcphdr, check);
	if (bpf_l4_csum_replace(skb, at, 0, fold_to_word(sum), 0) < 0)
		return -1;
	return bpf_l4_csum_replace(skb, at, 0, fold_to_word(exchange(0, bpf_htonl(before), bpf_htonl(bytes))),
				   BPF_F_PSEUDO_HDR);
}

/* Whether the segment was sent although the server has had its answer: it wants to know whether anybody is there. */
static __always_inline int wants_answer(const struct packet *packet, const struct session *session, __u64 offset)
{
	return packet->payload || packet->flags & FIN || distance(offset, session->down.acked) > 0;
}

/* A segment of the server's, plausible and no RST, while the session is parked; whether it is to be answered. */
__noinline int parked(struct __sk_buff *skb, const struct packet *packet, const struct flow *flow, __u64 offset, __u32 l2)
{
	struct session *session;
	struct leg *server;
	__u64 now, said;
	__u32 tsval;

	if (!packet || !flow)
		return 0;
	session = bpf_map_lookup_elem(&sessions, &flow->slot);
	if (!session)
		return 0;
	server = &session->legs[LEG_SERVER];
	now = bpf_ktime_get_coarse_ns();
	tsval = tsval_of(skb, packet, server->ts_in);
	if (packet->flags & ACK) {
		said = unwrap(session->up.acked, packet->acknowledgment - server->out_base);

		/* What the server has got it has got, whoever hears of it. */
		if (implausible_ack(&session->up, said) < 0 && distance(said, session->up.sent) >= 0) {
			note_acknowledged(&session->up, said);
			if (!(packet->flags & SYN))
				note_window(&session->up, said, (__u32)packet->window << server->in_scale);
		}
	}
	if (!(packet->flags & SYN) && (packet->payload || packet->flags & FIN))
		note_data(&session->down, server, offset + packet->payload, packet->flags & FIN ? 1 : 0);
	session->last_ns = now;
	if ((__s32)(tsval - server->ts_in) > 0) {
		server->ts_in = tsval;
		server->ts_in_at = now;
	}
	/* What the mobile waits for is copied in any case: new segments that the ACK of a PARK has brought may fill the places. */
	if (packet->payload && (session->held < HELD_MOST || (distance(session->down.acked, offset) == 0 &&
							      now >= session->held_ns + HOLD_AGAIN_NS))) {
		if (session->held < HELD_MOST)
			session->held++;
		session->held_ns = now;
		hold(skb, packet, flow, offset, tsval);
	}
	/* The daemon's clock may be a tick ahead of this one. */
	if (distance(session->parked_ns, now) < (__s64)CLOSE_WINDOW_NS ||
	    distance(session->parked_ns, now) > (__s64)ANSWER_NS || !wants_answer(packet, session, offset))
		return 0;
	session->flags |= SESSION_CLOSED_WINDOW;
	return 1;
}

/*
 * The mobile speaks again after a silence with data on the way. When a link comes back, that may be an ACK from before
 * the outage, which the next leg follows within two round trips: what the server answers to it is lost with this leg.
 */
static __always_inline void note_waking(struct session *session, const struct leg *mobile, __u64 now)
{
	if (!(session->flags & SESSION_RESUMABLE) || !mobile->ts_in_at || now < mobile->ts_in_at + SILENT_NS ||
	    distance(session->down.acked, session->down.sent) <= 0)
		return;
	session->woke_ms = now / 1000000;
	session->held = 0;
}

/*
 * Whether the daemon gets a copy of what the server sends to a leg that carries, but may be gone, though nobody has said
 * so: what it says again, or asks, when the mobile is silent; its tail loss probe, which comes sooner (RFC 8985 section
 * 7); and the first of what it sends when the mobile speaks again. The copies wake the server if another leg follows.
 */
static __always_inline void hold_for_silent(struct __sk_buff *skb, const struct packet *packet, const struct flow *flow,
					    struct session *session, const struct leg *mobile, __u64 offset, __u64 now)
{
	__u64 silent_ns = SILENT_NS;

	if (!(session->flags & SESSION_RESUMABLE) || !(mobile->flags & LEG_TIMESTAMPS) || !mobile->ts_in_at)
		return;
	if (session->woke_ms && packet->payload && session->held < HELD_MOST &&
	    (__s32)((__u32)(now / 1000000) - session->woke_ms) < WOKE_MS) {
		session->held++;
		hold(skb, packet, flow, offset, tsval_of(skb, packet, session->legs[LEG_SERVER].ts_in));
		return;
	}
	if (packet->payload && distance(session->down.sent, offset) >= 0) {
		if (distance(session->down.acked, session->down.sent) <= 0)
			return;
		silent_ns = QUIET_NS;
	} else if (!packet->payload && distance(offset, session->down.acked) <= 0) {
		return;
	}
	if (now < mobile->ts_in_at + silent_ns || now < session->held_ns + HOLD_AGAIN_NS)
		return;
	session->held_ns = now;
	hold(skb, packet, flow, offset, tsval_of(skb, packet, session->legs[LEG_SERVER].ts_in));
}

/*
 * A later leg stands, and what the server sends next is not what the mobile waits for: the first of it is held, and
 * reported to the server as received out of order, which so learns at once what is missing. Of the rest passes what the
 * mobile's window has room for. The server may go on behind what was held, and never send what belongs at the beginning.
 */
static __always_inline int out_of_turn(struct __sk_buff *skb, const struct packet *packet, const struct flow *flow,
				       struct session *session, __u64 offset)
{
	struct leg *server = &session->legs[LEG_SERVER];

	if (!packet->payload)
		return 0;
	if (distance(session->down.acked, offset) <= 0) {
		session->flags &= ~SESSION_RESUMING;
		return 0;
	}
	/* The daemon delivers what is held, so the mobile may acknowledge it. A FIN is not, and comes again. */
	if (session->held < HELD_MOST) {
		session->held++;
		note_data(&session->down, server, offset + packet->payload, 0);
		hold(skb, packet, flow, offset, tsval_of(skb, packet, server->ts_in));
		return 1;
	}
	return distance(offset + packet->payload, session->mobile_edge) < 0;
}

#endif
