/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * What this host's kernel sends on legs. While a leg is in its handshake the kernel's socket speaks, and here is noted
 * where its numbers stand; once it is spliced the kernel is silenced.
 */
#ifndef MSOCKS_EGRESS_H
#define MSOCKS_EGRESS_H

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "arrivals.h"
#include "handover.h"
#include "layout.h"
#include "maps.h"
#include "options.h"
#include "parse.h"
#include "path.h"
#include "rewrite.h"
#include "streams.h"

static __always_inline int put_words(struct __sk_buff *skb, const struct packet *packet, __u32 acknowledgment,
				     __u16 window)
{
	__u32 at = packet->l4 + offsetof(struct tcphdr, check);
	__be32 ack_before = bpf_htonl(packet->acknowledgment), ack_after = bpf_htonl(acknowledgment);
	__be16 window_before = bpf_htons(packet->window), window_after = bpf_htons(window);

	if (ack_before != ack_after &&
	    (bpf_skb_store_bytes(skb, packet->l4 + offsetof(struct tcphdr, ack_seq), &ack_after, 4, 0) < 0 ||
	     bpf_l4_csum_replace(skb, at, ack_before, ack_after, 4) < 0))
		return -1;
	if (window_before != window_after &&
	    (bpf_skb_store_bytes(skb, packet->l4 + offsetof(struct tcphdr, window), &window_after, 2, 0) < 0 ||
	     bpf_l4_csum_replace(skb, at, window_before, window_after, 2) < 0))
		return -1;
	return 0;
}

static __always_inline int end_for_reset(struct __sk_buff *skb, const struct packet *packet)
{
	const __u32 at = packet->l4 + 12; /* data offset and flags */
	__be16 before, after;

	if (bpf_skb_load_bytes(skb, at, &before, sizeof(before)) < 0)
		return -1;
	after = (before & bpf_htons((__u16)~FIN)) | bpf_htons(RST);
	if (bpf_skb_store_bytes(skb, at, &after, sizeof(after), 0) < 0)
		return -1;
	return bpf_l4_csum_replace(skb, packet->l4 + offsetof(struct tcphdr, check), before, after, sizeof(after));
}

static __always_inline void note_timestamps(struct __sk_buff *skb, const struct packet *packet, struct leg *leg)
{
	struct option_work work = {};

	if (!packet->options)
		return;
	work.changes = FIND_TIMESTAMPS;
	if (work_on_options(skb, &work, packet->l4 + sizeof(struct tcphdr), packet->options) < 0 || !work.found)
		return;
	leg->ts_out = work.tsval_found;
	leg->ts_in = work.tsecr_found;
	leg->ts_out_at = leg->ts_in_at = bpf_ktime_get_coarse_ns();
}

/* A server leg whose socket is the kernel's still. */
static __always_inline int server_handshake(struct __sk_buff *skb, struct packet *packet, const struct flow *flow,
					    const __u32 l2)
{
	struct session *session = bpf_map_lookup_elem(&sessions, &flow->slot);
	struct leg *server;

	if (!session || session->incarnation != flow->incarnation)
		return NEXT;
	server = &session->legs[LEG_SERVER];
	if (packet->flags & SYN) {
		if (without_ecn(skb, packet) < 0)
			return DROP;
		if (packet->options) {
			struct option_work work = {};
			__u32 at = packet->l4 + sizeof(struct tcphdr);

			work.changes = session->flags & SESSION_STRIP_TIMESTAMPS ? STRIP_TIMESTAMPS : 0;
			if (server->announced)
				work.changes |= LOWER_MSS;
			work.mss = server->announced;
			if (work_on_options(skb, &work, at, packet->options) < 0 ||
			    put_options(skb, &work, at, packet->options) < 0 ||
			    bpf_l4_csum_replace(skb, packet->l4 + offsetof(struct tcphdr, check), 0, work.at, 0) < 0)
				return DROP;
		}
		return NEXT;
	}
	if (!(packet->flags & ACK))
		return NEXT;
	if (!(server->flags & LEG_NOTED)) {
		server->out_base = packet->sequence;
		server->in_base = packet->acknowledgment;
		server->flags |= LEG_NOTED;
	}
	note_timestamps(skb, packet, server);
	learn_path(skb, server, l2 != 0);
	/*
	 * The handshake ends at its two ends: the server hears the first word of the mobile's, and takes the round trip for
	 * what it is. Besides it may not speak before the splice stands, or its first bytes would be this kernel's. If the
	 * end comes before that, as when the daemon is killed, there has been no connection: a FIN would make one.
	 */
	if (!packet->payload && !(packet->flags & (FIN | RST)))
		return DROP;
	if (!packet->payload && packet->flags & FIN && end_for_reset(skb, packet) < 0)
		return DROP;
	return put_words(skb, packet, packet->acknowledgment, 0) < 0 ? DROP : NEXT;
}

static __always_inline void forget_opening(const struct leg *server)
{
	struct opening_key key;

	__builtin_memcpy(key.remote, server->remote, 16);
	key.remote_port = server->remote_port;
	key.local_port = server->local_port;
	bpf_map_delete_elem(&opening, &key);
}

/* This kernel's acknowledgments of what only the server may acknowledge; said once, up to the end of the request. */
static __always_inline int capped(struct __sk_buff *skb, struct packet *packet)
{
	struct cap *cap;

	if (!(packet->flags & ACK) || packet->flags & SYN)
		return NEXT;
	cap = bpf_map_lookup_elem(&caps, &packet->key);
	if (!cap || (__s32)(packet->acknowledgment - cap->request_end) <= 0)
		return NEXT;
	if (cap->acknowledged && !packet->payload && !(packet->flags & (FIN | RST))) {
		count_drop(DROP_UNTIMELY_ACK);
		return DROP;
	}
	cap->acknowledged = 1;
	return put_words(skb, packet, cap->request_end, packet->window) < 0 ? DROP : NEXT;
}

/*
 * The reply leaves, and with it the leg belongs to the splice. Its numbers are those of this segment: the stream begins
 * behind it downstream, and upstream behind the request, whatever the kernel has taken beyond.
 */
static __always_inline int reply(struct __sk_buff *skb, struct packet *packet, const struct flow *flow,
				 struct session *session, struct leg *leg, const __u32 l2)
{
	struct bpf_sock *sock = skb->sk ? bpf_sk_fullsock(skb->sk) : NULL;
	struct bpf_tcp_sock *tcp = sock ? bpf_tcp_sock(sock) : NULL;
	__u32 request_end;
	__s64 room;

	if (!tcp)
		return NEXT;
	/* By its place, not by its length: what the socket had said before may come again, in one packet with the reply. */
	if (packet->sequence - tcp->snd_una + (__u32)tcp->bytes_acked + packet->payload !=
	    leg->out_base + leg->reply_length)
		return capped(skb, packet);
	request_end = packet->acknowledgment - ((__u32)tcp->bytes_received - leg->consumed);
	leg->in_base = request_end - (__u32)leg->begins_in;
	leg->out_base = packet->sequence + packet->payload - (__u32)leg->begins_out;
	leg->arrived = leg->begins_in;
	note_timestamps(skb, packet, leg);
	learn_path(skb, leg, l2 != 0);
	room = distance(leg->begins_in, session->up.edge);
	room = room < 0 ? 0 : room >> leg->out_scale;
	leg->flags |= LEG_NOTED;
	leg->state = LEG_LIVE;
	if (session->state == SESSION_OPENING) {
		forget_opening(&session->legs[LEG_SERVER]);
		session->legs[LEG_SERVER].state = LEG_LIVE;
		session->state = SESSION_OPEN;
	}
	session->active = flow->leg;
	session->parked_ns = 0;
	session->flags &= ~SESSION_STOPPED;
	return put_words(skb, packet, request_end, room > 65535 ? 65535 : room) < 0 ? DROP : NEXT;
}

/* The daemon's raw socket, not a TCP socket with the same mark, nor the kernel's own for answers without a socket. */
static __always_inline int is_crafted(struct __sk_buff *skb)
{
	struct bpf_sock *sock = skb->mark == MARK_OF_DAEMON && skb->sk ? bpf_sk_fullsock(skb->sk) : NULL;

	return sock && sock->protocol == IPPROTO_RAW;
}

static __always_inline int of_spliced_leg(struct __sk_buff *skb, struct packet *packet, const struct flow *flow,
					  const __u32 l2)
{
	struct session *session = bpf_map_lookup_elem(&sessions, &flow->slot);
	struct leg *leg;

	if (!session || session->incarnation != flow->incarnation) {
		count_drop(DROP_KERNEL_SPOKE);
		return DROP;
	}
	leg = flow->leg == LEG_SERVER ? &session->legs[LEG_SERVER] :
	      flow->leg == 2	      ? &session->legs[2] :
					&session->legs[1];
	if (is_crafted(skb)) {
		learn_path(skb, leg, l2 != 0);
		return NEXT;
	}
	if (leg->state == LEG_HANDSHAKE) {
		if (flow->leg == LEG_SERVER)
			return server_handshake(skb, packet, flow, l2);
		if (packet->payload && leg->reply_length)
			return reply(skb, packet, flow, session, leg, l2);
		if (leg->flags & LEG_AWAITED) {
			note_timestamps(skb, packet, leg);
			learn_path(skb, leg, l2 != 0);
			note_successor(skb, packet, session, leg);
		}
		return capped(skb, packet);
	}
	/* The listener's answer to a host that uses the addresses of a session that is over. */
	if (flow->leg != LEG_SERVER && session->state != SESSION_OPEN &&
	    (packet->flags & (SYN | ACK | RST)) == (SYN | ACK)) {
		leg->consumed = packet->sequence + 1;
		leg->flags |= LEG_SUCCEEDED;
		return NEXT;
	}
	count_drop(DROP_KERNEL_SPOKE);
	return DROP;
}

static __always_inline struct leg *leg_of(const struct flow *flow)
{
	struct session *session = bpf_map_lookup_elem(&sessions, &flow->slot);

	if (!session || session->incarnation != flow->incarnation)
		return NULL;
	return flow->leg == LEG_SERVER ? &session->legs[LEG_SERVER] :
	       flow->leg == 2	       ? &session->legs[2] :
					 &session->legs[1];
}

static __always_inline int learn_from_forwarded(struct __sk_buff *skb, const __u32 l2)
{
	struct packet packet = {};
	struct flow *flow;
	struct leg *leg;

	if (parse(skb, &packet, l2) != TCP)
		return NEXT;
	turn_around(&packet.key);
	flow = bpf_map_lookup_elem(&flows, &packet.key);
	leg = flow ? leg_of(flow) : NULL;
	if (leg)
		learn_path(skb, leg, l2 != 0);
	return NEXT;
}

static __always_inline int egress(struct __sk_buff *skb, const __u32 l2)
{
	struct packet packet = {};
	struct opening_key key = {};
	struct config *settings;
	struct flow *flow;
	__u16 port;
	int listens;

	/* With a tag: it has passed the VLAN interface's hook. */
	if (skb->tc_index == TC_INDEX_OF_SPLICE || skb->vlan_present)
		return NEXT;
	if (skb->tc_index == TC_INDEX_TO_LEARN)
		return learn_from_forwarded(skb, l2);
	if (parse(skb, &packet, l2) != TCP)
		return NEXT;
	turn_around(&packet.key);
	settings = configuration();
	if (!settings)
		return NEXT;
	port = bpf_ntohs(packet.key.local_port);
	listens = bpf_map_lookup_elem(&listeners, &packet.key.local_port) != NULL;
	if (!listens && (port < settings->first_port || port > settings->last_port))
		return NEXT;
	flow = bpf_map_lookup_elem(&flows, &packet.key);
	if (flow)
		return of_spliced_leg(skb, &packet, flow, l2);
	if (listens)
		return capped(skb, &packet);
	__builtin_memcpy(key.remote, packet.key.remote, 16);
	key.remote_port = packet.key.remote_port;
	key.local_port = packet.key.local_port;
	flow = bpf_map_lookup_elem(&opening, &key);
	return flow ? server_handshake(skb, &packet, flow, l2) : NEXT;
}

#endif
