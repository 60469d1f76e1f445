/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * What a segment says on its way from one leg to the other, and how that is said there: options, the acknowledgment and
 * the window behind it, resets, and the place of an ACK without data.
 */
#ifndef MSOCKS_CROSSING_H
#define MSOCKS_CROSSING_H

#include "handover.h"
#include "layout.h"
#include "maps.h"
#include "options.h"
#include "park.h"
#include "parse.h"
#include "rewrite.h"
#include "streams.h"
#include "timestamps.h"

/* How far below the cumulative ACK a SACK block may lie: sequence numbers are compared by the sign of a difference. */
#define SACK_REACH (1 << 30)

struct crossing {
	struct session *session;
	const struct flow *flow;
	struct leg *in;
	struct leg *out;
	struct leg *mobile; /* one of the two */
	struct stream *data; /* the stream that the packet carries */
	struct stream *back; /* the stream that it acknowledges */
	__u64 offset;
	__u64 end; /* without the FIN */
	__u64 now;
	__u32 from_mobile;
	__u32 carrier; /* the number of `mobile` */
	__u32 drains;  /* it is a leg that has handed over, and brings what was sent on it */
};

static __always_inline int dropped(struct crossing *crossing, __u32 reason)
{
	crossing->data->dropped++;
	count_drop(reason);
	return DROP;
}

/*
 * How far SACK blocks reach. While a leg hands over, what has come on the other one behind the split is no sign of a
 * loss; and what lies behind it on the old leg nobody reads.
 */
static __always_inline __u64 reported_end(const struct crossing *crossing)
{
	struct session *session = crossing->session;
	__u64 end = crossing->out->arrived, split = split_of(&session->handover);

	if (crossing->from_mobile && session->handover.from_leg && split != NO_SPLIT && distance(split, end) > 0 &&
	    (crossing->carrier == session->handover.from_leg || !has_drained(session)))
		return split;
	return end;
}

/* The layout that nearly every segment has is read here; any other is done by work_on_options() and put back. */
static __always_inline int cross_timestamps_and_sack(struct __sk_buff *skb, struct packet *packet,
						     struct crossing *crossing, struct segment *segment)
{
	struct leg *mobile = crossing->mobile, *server = &crossing->session->legs[LEG_SERVER];
	struct leg *in = crossing->in, *out = crossing->out;
	struct option_work work = {};
	struct echo echo;
	__u32 at = packet->l4 + sizeof(struct tcphdr);
	__u64 acknowledged;
	__u32 words[3];
	/* What is limited was handed over not long ago. */
	int shared = crossing->session->handover.from_leg || crossing->session->handover.allowance;

	if (!packet->options)
		return 0;
	if (packet->options == TIMESTAMPS_ALONE && bpf_skb_load_bytes(skb, at, words, sizeof(words)) == 0 &&
	    words[0] == TIMESTAMPS_BEHIND_NOPS) {
		if (!(out->flags & LEG_TIMESTAMPS)) {
			segment->strip_timestamps = 1;
			return 0;
		}
		if (crossing->from_mobile)
			echo = timestamps_from_mobile(mobile, server, bpf_ntohl(words[1]), bpf_ntohl(words[2]),
						      crossing->now, shared);
		else
			echo = timestamps_from_server(mobile, server, bpf_ntohl(words[1]), bpf_ntohl(words[2]),
						      crossing->now);
		segment->tsval = bpf_ntohl(words[1]) + echo.shift;
		segment->tsecr = echo.tsecr;
		segment->write_timestamps = 1;
		return 0;
	}
	work.changes = FIND_TIMESTAMPS;
	if (work_on_options(skb, &work, at, packet->options) < 0)
		return -1;
	work.changes = 0;
	if (work.found & CHANGE_TIMESTAMPS) {
		if (!(out->flags & LEG_TIMESTAMPS)) {
			work.changes |= STRIP_TIMESTAMPS;
		} else {
			work.changes |= CHANGE_TIMESTAMPS;
			if (crossing->from_mobile)
				echo = timestamps_from_mobile(mobile, server, work.tsval_found, work.tsecr_found,
							      crossing->now, shared);
			else
				echo = timestamps_from_server(mobile, server, work.tsval_found, work.tsecr_found,
							      crossing->now);
			work.tsval_shift = echo.shift;
			work.tsecr = echo.tsecr;
		}
	}
	acknowledged = unwrap(crossing->back->acked, segment->acknowledgment - out->in_base);
	work.changes |= out->flags & LEG_SACK ? CHANGE_SACK : STRIP_SACK;
	work.sack_shift = out->in_base - in->out_base;
	work.sack_base = segment->acknowledgment;
	work.sack_floor = out->in_base + (__u32)later(in->begins_out, acknowledged - SACK_REACH);
	work.sack_end = out->in_base + (__u32)reported_end(crossing);
	if (work_on_options(skb, &work, at, packet->options) < 0 || put_options(skb, &work, at, packet->options) < 0)
		return -1;
	segment->sum += work.at;
	return 0;
}

/*
 * RFC 5961: an RST ends something here only if it is exact. Another one is the receiver's to judge, who may ask for an
 * exact one by a challenge ACK; but where the mobile can reconnect, an RST on its leg would say no more than that the
 * leg is gone, so that it is this host that asks the server.
 */
static __always_inline int implausible_reset(struct crossing *crossing)
{
	struct session *session = crossing->session;

	if (!(session->flags & SESSION_RESUMABLE) || exact(crossing->data, crossing->in, crossing->offset))
		return -1;
	if (!crossing->from_mobile && may_complain(session, crossing->now))
		tell(EVENT_INEXACT_RESET, crossing->flow, 0);
	return DROP_INEXACT_RESET;
}

/* One that is plausible; on a leg that can be followed by another it is not passed on. */
static __always_inline int take_reset(struct crossing *crossing)
{
	struct session *session = crossing->session;

	if (!exact(crossing->data, crossing->in, crossing->offset))
		return -1;
	if (crossing->from_mobile && session->flags & SESSION_RESUMABLE) {
		crossing->in->state = LEG_STOPPED;
		park(session, crossing->now);
		tell(EVENT_LEG_RESET, crossing->flow, crossing->in->generation);
		return DROP_RESET_DETACHES;
	}
	/*
	 * Here it is exact; the receiver may have less, or more, and asks for another (RFC 5961 section 3.2). The end that has
	 * sent this one has no connection any more, and would say RST to that: now the daemon does.
	 */
	session->state = session->flags & SESSION_RESUMABLE ? SESSION_RESET : SESSION_RESETTING;
	tell(crossing->from_mobile ? EVENT_LEG_RESET : EVENT_SERVER_RESET, crossing->flow, crossing->in->generation);
	return session->flags & SESSION_RESUMABLE ? DROP_RESET_DETACHES : -1;
}

static __always_inline int take_acknowledgment(struct packet *packet, struct crossing *crossing,
					       struct segment *segment)
{
	struct stream *back = crossing->back;
	struct leg *in = crossing->in, *out = crossing->out;
	struct session *session = crossing->session;
	__u64 said = unwrap(back->acked, packet->acknowledgment - in->out_base), emitted = said;
	__u32 window = packet->window;
	int reason, is_reset = packet->flags & RST;
	__u64 edge, room;

	/* An RST counts whatever it acknowledges (RFC 9293 section 3.10.7.4), and nobody goes by that. */
	reason = is_reset ? -1 : implausible_ack(back, said);
	if (reason >= 0)
		return reason;
	if (!(packet->flags & SYN))
		window <<= in->in_scale;
	/* What it acknowledges of the reply is this host's affair; of an earlier leg's bytes, the other end's. */
	if (distance(emitted, in->begins_out) > 0)
		emitted = in->begins_out;
	edge = said + window;
	if (crossing->from_mobile && !is_reset) {
		if (distance(in->begins_out, said) >= 0)
			in->flags |= LEG_REPLY_ACKED;
		if (!(packet->flags & SYN) && !crossing->drains)
			session->mobile_edge = later(session->mobile_edge, edge);
		if (!crossing->drains)
			time_acknowledgment(session, said);
		if (session->handover.from_leg) {
			struct told told = {
				.acknowledged = emitted,
				.edge = edge,
				.leg = crossing->carrier,
				.has_more = packet->payload || (packet->flags & (SYN | FIN) && !crossing->drains),
			};

			reason = tell_of_both(session, &told);
			if (reason >= 0)
				return reason;
			emitted = told.acknowledged;
			edge = told.edge;
		}
		if (session->handover.allowance)
			edge = allowed_edge(session, emitted, edge);
	}
	/* To a leg that begins behind what another one is still to bring, that is not said. */
	if (!crossing->from_mobile && distance(emitted, out->begins_in) > 0)
		emitted = out->begins_in;
	if (distance(out->arrived, emitted) > 0)
		emitted = out->arrived;
	/* D is what was let through to the server, U what the server has said. */
	if (!is_reset) {
		if (crossing->from_mobile) {
			note_acknowledged(back, emitted);
		} else if (distance(said, back->sent) >= 0) {
			note_acknowledged(back, said);
		}
		if (!(packet->flags & SYN))
			note_window(back, said, window);
	}
	segment->acknowledgment = out->in_base + (__u32)emitted;
	room = distance(emitted, edge) > 0 ? edge - emitted : 0;
	if (!(packet->flags & SYN))
		room >>= out->out_scale;
	segment->window = room > 65535 ? 65535 : room;
	return -1;
}

/* Data of the stream, and the reply that was to come before it has not: the daemon says it again without waiting. */
static __always_inline void miss_reply(struct packet *packet, struct crossing *crossing)
{
	struct leg *in = crossing->in;
	__u64 said = unwrap(crossing->back->acked, packet->acknowledgment - in->out_base);

	if (distance(said, in->begins_out) > 0 && crossing->back->packets && may_complain(crossing->session, crossing->now))
		tell(EVENT_REPLY_MISSING, crossing->flow, in->generation);
}

/*
 * Where an ACK without data stands in the stream. A new leg is behind what the server has acknowledged, and its window
 * is smaller than what the server has sent; each end would drop the other's ACKs as outside its window (RFC 9293
 * section 3.10.7.4), and say so, for ever. Keep-alives are one before what is expected, and stay there.
 */
static __always_inline __u64 acceptable(const struct crossing *crossing)
{
	const struct handover *handover = &crossing->session->handover;
	__u64 offset = crossing->offset, split = split_of(handover);

	if (crossing->from_mobile)
		return distance(offset, crossing->data->acked) > 1 ? crossing->data->acked : offset;
	if (handover->from_leg && split != NO_SPLIT) {
		split += crossing->carrier == handover->from_leg ? 0 : handover->room;
		return distance(split, offset) > 0 ? split : offset;
	}
	return distance(crossing->session->mobile_edge, offset) > 0 ? crossing->session->mobile_edge : offset;
}

#endif
