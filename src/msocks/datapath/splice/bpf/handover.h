/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * A handover: the old mobile leg brings what lies before the *split*, the new one what lies behind, and both live.
 *
 * Downstream the split is taken here, at the first segment that nobody has seen yet: user space could name no offset
 * that a packet does not pass meanwhile. The server hears the old leg's ACKs up to the split, and of the new leg's
 * nothing before that; else it would let go of what the old leg may still lose. The windows that it is shown are the
 * new leg's. Upstream the mobile node has chosen the split (A), and the server puts both legs' bytes in order.
 */
#ifndef MSOCKS_HANDOVER_H
#define MSOCKS_HANDOVER_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "layout.h"
#include "maps.h"
#include "parse.h"
#include "streams.h"

/* After this time the window grows in any case, by a segment in a round trip; then it is the server's own affair. */
#define LIMIT_GROWS_NS 2000000000ULL
#define LIMIT_STEP 1448
#define LIMIT_ENDS_NS 30000000000ULL
#define MOST_HELD (1 << 30)

static __always_inline __u64 split_of(const struct handover *handover)
{
	return *(const volatile __u64 *)&handover->split;
}

static __always_inline struct leg *mobile_leg(struct session *session, __u32 number)
{
	return number == 2 ? &session->legs[2] : &session->legs[1];
}

/* Whether the old leg has brought everything. */
static __always_inline int has_drained(const struct session *session)
{
	return distance(split_of(&session->handover), session->down.acked) >= 0;
}

/* The offset becomes the split, unless there is one already; what the split is. */
static __always_inline __u64 take_split(struct handover *handover, __u64 offset)
{
	__u64 found = __sync_val_compare_and_swap(&handover->split, NO_SPLIT, offset);

	return found == NO_SPLIT ? offset : found;
}

/* On which mobile leg a segment of the server's goes on while one hands over; 0 where nobody can take it yet. */
__noinline int leg_of_two(struct session *session, const struct packet *packet)
{
	struct handover *handover;
	struct leg *server, *leg;
	__u64 split, offset;
	__u32 from;

	if (!session || !packet)
		return 0;
	handover = &session->handover;
	server = &session->legs[LEG_SERVER];
	from = handover->from_leg;
	split = split_of(handover);
	offset = unwrap(session->down.acked, packet->sequence - server->in_base);
	if (packet->payload || packet->flags & (FIN | SYN | RST)) {
		if (split == NO_SPLIT && implausible_data(&session->down, offset, offset + packet->payload) < 0 &&
		    distance(session->down.sent, offset) >= 0 && !(packet->flags & RST))
			split = take_split(handover, offset);
		if (split == NO_SPLIT || distance(offset, split) > 0)
			return from;
	} else if (split == NO_SPLIT || distance(unwrap(session->up.acked, packet->acknowledgment - server->out_base),
						 handover->up_split) > 0) {
		/* Of what the old leg has brought up not all is acknowledged. */
		return from;
	}
	if (!handover->to)
		return 0;
	leg = mobile_leg(session, handover->to);
	/* Everybody who comes here writes the same. */
	if (leg->state == LEG_HANDSHAKE)
		leg->out_base = handover->base - (__u32)split;
	return handover->to;
}

struct told { /* what one of the mobile legs acknowledges, and becomes what the server hears */
	__u64 acknowledged;
	__u64 edge;
	__u32 leg;
	__u32 has_more; /* than the ACK: it has to go on */
};

/* A reason to drop the packet, or -1. */
__noinline int tell_of_both(struct session *session, struct told *told)
{
	struct handover *handover;
	struct stream *down;
	__u64 split;

	if (!session || !told)
		return DROP_STALE_LEG;
	handover = &session->handover;
	down = &session->down;
	split = split_of(handover);
	if (told->leg == handover->from_leg) {
		if (split == NO_SPLIT) {
			if (handover->to)
				told->edge = down->sent + handover->room;
			return -1;
		}
		if (distance(split, told->acknowledged) >= 0) {
			if (has_drained(session) && !told->has_more)
				return DROP_STALE_LEG;
			/* First this, then the other's: who notes an ACK of the new leg meanwhile looks for this. */
			note_acknowledged(down, split);
			told->acknowledged = later(split, handover->acked);
		}
	} else {
		__u64 seen = handover->acked, room = told->edge - split;

		if (distance(seen, told->acknowledged) > 0)
			__sync_val_compare_and_swap(&handover->acked, seen, told->acknowledged);
		if (distance(handover->room, room) > 0)
			handover->room = room;
		if (!has_drained(session)) {
			if (!told->has_more)
				return DROP_EARLY_ACK;
			told->acknowledged = down->acked;
		}
	}
	told->edge = handover->to ? split + handover->room : told->acknowledged;
	return -1;
}

/*
 * The window after a handover. The server's congestion window is that of the old path, and the new one's queue may be
 * small: so the window begins as one of a new connection, and follows what the path turns out to carry.
 */
static __always_inline __u64 allowed_edge(const struct session *session, __u64 acknowledged, __u64 edge)
{
	const struct handover *handover = &session->handover;

	if (handover->from_leg && distance(acknowledged, split_of(handover)) > 0)
		acknowledged = later(split_of(handover), handover->acked);
	acknowledged += handover->allowance;
	return distance(edge, acknowledged) > 0 ? edge : acknowledged;
}

/* What the leg that has taken over has acknowledged, of its own. */
static __always_inline __u64 successor_acked(const struct session *session)
{
	const struct handover *handover = &session->handover;

	return handover->from_leg ? later(split_of(handover), handover->acked) : session->down.acked;
}

/* From a segment that leaves to the ACK of it: a round trip of the new leg. */
static __always_inline void time_segment(struct session *session, __u64 end)
{
	struct handover *handover = &session->handover;

	if (handover->allowance && !handover->timed_end) {
		handover->timed_at = bpf_ktime_get_ns();
		handover->timed_from = successor_acked(session);
		handover->timed_trip = 0;
		handover->timed_end = end;
	}
}

/*
 * What is acknowledged meanwhile, or in a round trip from end to end where that is longer, is what the path holds; at
 * the least round trip, what it holds without a queue. Half as much again keeps it busy, and finds out whether it holds
 * more.
 */
__noinline int time_acknowledgment(struct session *session, __u64 acknowledged)
{
	struct handover *handover;
	__u64 now, passed, whole, held, allowance;

	if (!session)
		return -1;
	handover = &session->handover;
	/* Without one, the leg that it was measured for has gone: what was timed then says nothing of this one. */
	allowance = handover->allowance;
	if (!allowance || !handover->timed_end || distance(handover->timed_end, acknowledged) < 0)
		return 0;
	now = bpf_ktime_get_ns();
	passed = now - handover->timed_at;
	if (!handover->timed_trip) {
		handover->timed_trip = 1;
		if (passed < handover->least_ns)
			handover->least_ns = passed;
	}
	whole = handover->least_ns + session->legs[LEG_SERVER].round_trip_ms * 1000000ULL;
	if (passed < whole)
		return 0;
	handover->timed_end = 0;
	held = acknowledged - handover->timed_from;
	passed >>= 10;
	if (held > MOST_HELD || !passed)
		return 0;
	held = held * (whole >> 10) / passed;
	held += held >> 1;
	if (now > handover->since + LIMIT_ENDS_NS)
		held = 0;
	else if (held <= allowance)
		held = now > handover->since + LIMIT_GROWS_NS ? allowance + LIMIT_STEP : allowance;
	/* Unless the daemon has ended it meanwhile. */
	__sync_val_compare_and_swap(&handover->allowance, allowance, held);
	return 0;
}

/*
 * The kernel socket of the leg that is to take over says something before its reply, because the daemon has made it:
 * now its numbers are known, and what the server sends can go to it, ahead of the reply.
 */
static __always_inline void note_successor(struct __sk_buff *skb, const struct packet *packet, struct session *session,
					   struct leg *leg)
{
	struct bpf_sock *sock = skb->sk ? bpf_sk_fullsock(skb->sk) : NULL;
	struct bpf_tcp_sock *tcp = sock ? bpf_tcp_sock(sock) : NULL;

	if (!tcp || !(packet->flags & ACK))
		return;
	leg->in_base = packet->acknowledgment - ((__u32)tcp->bytes_received - leg->consumed) - (__u32)leg->begins_in;
	session->handover.base = tcp->snd_nxt + session->handover.reply_length;
	leg->flags = (leg->flags | LEG_NOTED) & ~LEG_AWAITED;
}

struct which {
	__u32 slot;
	__u32 incarnation;
};

/* Run by the daemon when nobody is inside any more who has not seen that a handover is under way. */
SEC("syscall")
int fix_split(struct which *which)
{
	__u32 slot = which->slot;
	struct session *session = bpf_map_lookup_elem(&sessions, &slot);

	if (!session || session->incarnation != which->incarnation)
		return -1;
	take_split(&session->handover, session->down.sent);
	return 0;
}

#endif
