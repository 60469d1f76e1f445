/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Sequence numbers and stream offsets; which segments are plausible (RFC 5961, RFC 9293 section 3.10.7.4).
 *
 * A leg's numbers have 32 bits and any beginning; a stream's offsets have 64 and begin at 0. The splice is never
 * stricter than the receiver: whatever it may answer, with a challenge ACK for instance, has to reach it. What lies
 * further off than the widest window ever offered is nobody's.
 */
#ifndef MSOCKS_STREAMS_H
#define MSOCKS_STREAMS_H

#include <linux/types.h>

#include "layout.h"
#include "parse.h"

/* Windows are announced in units; probes and keep-alives lie just outside. */
#define SLACK 65536

/* The offset next to `near` whose low 32 bits are `low`. */
static __always_inline __u64 unwrap(__u64 near, __u32 low)
{
	return near + (__s64)(__s32)(low - (__u32)near);
}

/* An offset below 0 is a large number here: compared by difference. */
static __always_inline __s64 distance(__u64 from, __u64 to)
{
	return (__s64)(to - from);
}

static __always_inline __u64 later(__u64 one, __u64 other)
{
	return distance(one, other) > 0 ? other : one;
}

/*
 * Two processors may be in here for the same stream. An ACK must be noted before it is let through, or the next leg
 * would begin behind it: hence the loop. The other marks may lose a race; the next packet sets them right.
 */
static __always_inline void note_acknowledged(struct stream *stream, __u64 offset)
{
	__u64 seen = stream->acked;
	int turn;

	for (turn = 0; turn < 8; turn++) {
		__u64 found;

		if (distance(seen, offset) <= 0)
			return;
		found = __sync_val_compare_and_swap(&stream->acked, seen, offset);
		if (found == seen)
			return;
		seen = found;
	}
}

/* A segment of `stream` from `offset` to `end`: the reason to drop it, or -1. */
static __always_inline int implausible_data(const struct stream *stream, __u64 offset, __u64 end)
{
	if (distance(end + stream->widest + SLACK, stream->acked) > 0)
		return DROP_OLD_SEQUENCE;
	if (distance(stream->edge + SLACK, offset) > 0)
		return DROP_BEYOND_WINDOW;
	return -1;
}

/* An ACK of `stream` up to `offset`. */
static __always_inline int implausible_ack(const struct stream *stream, __u64 offset)
{
	if (distance(offset + stream->widest + SLACK, stream->acked) > 0)
		return DROP_OLD_ACK;
	if (distance(stream->sent + stream->widest + SLACK, offset) > 0)
		return DROP_ACK_OF_UNSENT;
	return -1;
}

/*
 * A FIN counts once its receiver has acknowledged it, which nobody can do but that; until then it is what the sender
 * says, and data beyond shows it to be false.
 */
static __always_inline void note_data(struct stream *stream, struct leg *leg, __u64 end, int has_fin)
{
	__u64 after = end + (has_fin ? 1 : 0);

	/* What acknowledges later comes from behind the FIN, and has no data. */
	if (stream->fin != NO_FIN && distance(stream->fin + 1, end) > 0)
		stream->fin = NO_FIN;
	/* An ACK from behind the FIN may have come before it. */
	if (has_fin && distance(after, stream->sent) <= 0)
		stream->fin = end;
	if (distance(stream->sent, after) > 0)
		stream->sent = after;
	if (distance(leg->arrived, after) > 0)
		leg->arrived = after;
	stream->packets++;
}

static __always_inline void note_window(struct stream *stream, __u64 acknowledged, __u32 window)
{
	__u64 edge = acknowledged + window;

	if (distance(stream->edge, edge) > 0)
		stream->edge = edge;
	if (window > stream->widest)
		stream->widest = window;
}

/* Exact as RFC 5961 section 3.2 wants it: at what the receiver expects next, or at the end of what was sent to it. */
static __always_inline int exact(const struct stream *stream, const struct leg *in, __u64 offset)
{
	return offset == stream->acked || offset == stream->sent || offset == in->arrived;
}

static __always_inline int all_acknowledged(const struct stream *stream)
{
	return stream->fin != NO_FIN && distance(stream->fin, stream->acked) > 0;
}

#endif
