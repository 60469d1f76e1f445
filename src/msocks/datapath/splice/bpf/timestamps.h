/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Timestamps across the splice (RFC 7323).
 *
 * The clocks of mobile and server have beginnings of their own; on each leg the peer has first seen the clock of this
 * host's kernel. So a TSval is shifted such that it goes on where the leg's last one was, by the time that has passed
 * since (a millisecond a tick, as most systems have it): monotonic, or PAWS would drop it, and true, or the echo
 * would make a round-trip sample as long as an outage. A TSecr is shifted back. The shifts of a mobile leg are fixed
 * with the first segment each way. An echo of what this host's kernel had sent names no TSval of the other end: it
 * becomes what the other end's clock shows now, less a round trip.
 *
 * What a clock shows now, its least delayed segment tells. Were it the last one, and that one late, then a later leg's
 * clock would lag, and what the server echoes of the former leg would come out as sent later than it was: a round trip
 * shorter than the path.
 */
#ifndef MSOCKS_TIMESTAMPS_H
#define MSOCKS_TIMESTAMPS_H

#include <linux/types.h>

#include "layout.h"

struct echo {
	__u32 shift; /* added to TSval */
	__u32 tsecr;
};

static __always_inline __u32 ticks_since(__u64 then, __u64 now)
{
	return now > then ? (now - then) / 1000000 : 0;
}

/* How far the instant at which a clock showed something creeps after each of its milliseconds: more than two clocks
 * drift apart, so that a quick segment of long ago does not count for ever.
 */
#define CREEP_NS 1000

/* Something newer leaves: it was due when the clock, by all that is known of it, showed that. */
static __always_inline void leaves(struct leg *leg, __u32 tsval, __u64 now)
{
	__u32 ahead = tsval - leg->ts_out;
	__u64 due;

	if ((__s32)ahead <= 0)
		return;
	due = leg->ts_out_at + (__u64)ahead * (1000000 + CREEP_NS);
	leg->ts_out = tsval;
	leg->ts_out_at = due < now ? due : now;
}

static __always_inline struct echo timestamps_from_mobile(struct leg *mobile, struct leg *server, __u32 tsval,
							  __u32 tsecr, __u64 now, int shared)
{
	struct echo echo;

	if (!(mobile->flags & LEG_SHIFT_IN_SET)) {
		mobile->shift_in = server->ts_out + ticks_since(server->ts_out_at, now) - tsval;
		mobile->flags |= LEG_SHIFT_IN_SET;
	}
	echo.shift = mobile->shift_in;
	/* Two legs at once, whose ways are of different length: none may fall behind what the other has said. */
	if (shared && (__s32)(tsval + echo.shift - server->ts_out) < 0)
		echo.shift = server->ts_out - tsval;
	if (mobile->flags & LEG_SHIFT_OUT_SET)
		echo.tsecr = tsecr - mobile->shift_out;
	else if (!mobile->begins_out)
		/* It acknowledges no byte; and in SYN-RECEIVED Linux takes an echo of what it has sent, and no other. */
		echo.tsecr = server->ts_in;
	else
		echo.tsecr = server->ts_in + ticks_since(server->ts_in_at, now) - mobile->round_trip_ms;
	/* Never ahead of what the server has sent. */
	if ((__s32)(echo.tsecr - server->ts_in) > 0 && mobile->flags & LEG_SHIFT_OUT_SET)
		echo.tsecr = server->ts_in;
	leaves(server, tsval + echo.shift, now);
	if ((__s32)(tsval - mobile->ts_in) > 0) {
		mobile->ts_in = tsval;
		mobile->ts_in_at = now;
	}
	return echo;
}

static __always_inline struct echo timestamps_from_server(struct leg *mobile, struct leg *server, __u32 tsval,
							  __u32 tsecr, __u64 now)
{
	struct echo echo;

	if (!(mobile->flags & LEG_SHIFT_OUT_SET)) {
		mobile->shift_out = mobile->ts_out + ticks_since(mobile->ts_out_at, now) - tsval;
		mobile->flags |= LEG_SHIFT_OUT_SET;
	}
	echo.shift = mobile->shift_out;
	echo.tsecr = mobile->flags & LEG_SHIFT_IN_SET ? tsecr - mobile->shift_in : mobile->ts_in;
	leaves(mobile, tsval + echo.shift, now);
	if ((__s32)(tsval - server->ts_in) > 0) {
		server->ts_in = tsval;
		server->ts_in_at = now;
	}
	return echo;
}

#endif
