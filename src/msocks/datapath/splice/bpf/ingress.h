/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * A packet's way through the splice, from top to bottom: whose it is, whether it is plausible, what it says (noted
 * before anybody else hears it), how that is said on the other leg, and where it goes.
 */
#ifndef MSOCKS_INGRESS_H
#define MSOCKS_INGRESS_H

#include "arrivals.h"
#include "damage.h"
#include "handover.h"
#include "layout.h"
#include "maps.h"
#include "options.h"
#include "park.h"
#include "parse.h"
#include "path.h"
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

/* No mobile leg carries: nothing is passed on, but either end may say that it is gone. */
static __always_inline int without_mobile_leg(struct __sk_buff *skb, struct packet *packet, struct crossing *crossing,
					      const __u32 l2)
{
	struct session *session = crossing->session;

	if (packet->flags & RST) {
		if (implausible_reset(crossing) < 0)
			take_reset(crossing);
	} else if (session->parked_ns && !crossing->from_mobile &&
		   parked(skb, packet, crossing->flow, crossing->offset, l2)) {
		__u32 tsval = tsval_of(skb, packet, session->legs[LEG_SERVER].ts_in);

		if (answer_ip(skb, packet, session, l2) == 0 && answer_tcp(skb, packet, session, tsval, l2) == 0) {
			skb->tc_index = TC_INDEX_OF_SPLICE;
			return bpf_redirect(skb->ifindex, 0);
		}
	}
	return dropped(crossing, DROP_STOPPED);
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

static __always_inline int cross(struct __sk_buff *skb, struct packet *packet, struct crossing *crossing, const __u32 l2)
{
	struct session *session = crossing->session;
	struct leg *in = crossing->in, *out = crossing->out;
	struct segment segment = {};
	int reason, has_fin = packet->flags & FIN ? 1 : 0;
	__u32 mtu;

	crossing->offset = unwrap(crossing->data->acked, packet->sequence - in->in_base);
	crossing->end = crossing->offset + packet->payload;
	if (packet->hop_limit <= 1)
		return dropped(crossing, DROP_HOP_LIMIT);
	reason = implausible_data(crossing->data, crossing->offset, crossing->end);
	/* A leg may begin far behind: the mobile had not heard what the server has acknowledged on an earlier one. */
	if (reason == DROP_OLD_SEQUENCE && crossing->from_mobile && distance(in->begins_in, crossing->offset) >= 0)
		reason = -1;
	if (reason >= 0)
		return dropped(crossing, reason);
	if (session->flags & SESSION_STOPPED)
		return without_mobile_leg(skb, packet, crossing, l2);
	if (session->flags & SESSION_RESUMING && !crossing->from_mobile &&
	    out_of_turn(skb, packet, crossing->flow, session, crossing->offset))
		return dropped(crossing, DROP_OUT_OF_TURN);
	if (crossing->from_mobile)
		note_waking(session, in, crossing->now);
	else
		hold_for_silent(skb, packet, crossing->flow, session, out, crossing->offset, crossing->now);
	if (!out->path.known)
		return dropped(crossing, DROP_NO_PATH);

	if (crossing->drains) {
		/* A leg that has handed over may end: of the stream that says nothing, nor of the session. */
		if (packet->flags & RST)
			return dropped(crossing, DROP_RESET_DETACHES);
		has_fin = 0;
		segment.clear_flags = FIN;
		if (distance(session->handover.up_split, crossing->end) > 0) {
			if (packet->payload)
				return dropped(crossing, DROP_STALE_LEG);
			/* What comes from behind its own FIN stands where the other leg's bytes begin. */
			crossing->offset = crossing->end = later(session->handover.up_split, crossing->data->acked);
		}
	}
	if (packet->flags & RST) {
		reason = implausible_reset(crossing);
		if (reason >= 0)
			return dropped(crossing, reason);
	} else if (!(packet->flags & (ACK | SYN))) {
		return dropped(crossing, DROP_NO_ACK);
	}
	if (packet->flags & ACK) {
		reason = take_acknowledgment(packet, crossing, &segment);
		if (reason >= 0)
			return dropped(crossing, reason);
		if (crossing->from_mobile)
			miss_reply(packet, crossing);
	}
	mtu = too_big_for(skb, packet, out);
	if (mtu) {
		if (may_complain(session, crossing->now)) {
			struct event event = event_of(EVENT_TOO_BIG, crossing->flow, mtu);

			tell_packet(skb, &event, packet->l3, packet->wire_length);
		}
		return dropped(crossing, DROP_TOO_BIG);
	}
	if (cross_timestamps_and_sack(skb, packet, crossing, &segment) < 0)
		return dropped(crossing, DROP_OPTIONS);
	/* Nobody drops it any more: only now may it end anything. */
	if (packet->flags & RST) {
		reason = take_reset(crossing);
		if (reason >= 0)
			return dropped(crossing, reason);
	}
	if (!(packet->flags & (SYN | RST)))
		note_data(crossing->data, in, crossing->end, has_fin);
	if (!crossing->from_mobile && packet->payload && crossing->carrier != session->handover.from_leg)
		time_segment(session, crossing->end);
	session->last_ns = crossing->now;
	if (!session->finished && all_acknowledged(&session->up) && all_acknowledged(&session->down)) {
		session->finished = 1;
		session->state = SESSION_CLOSING;
		tell(EVENT_FINISHED, crossing->flow, 0);
	}

	if (!packet->payload && !(packet->flags & ~segment.clear_flags & (SYN | FIN | RST)))
		crossing->offset = acceptable(crossing);
	segment.sequence = out->out_base + (__u32)crossing->offset;
	if (rewrite(skb, packet, out, &segment, l2) < 0)
		return dropped(crossing, DROP_FAMILY_CHANGE);
	reason = forward(skb, out, crossing->flow, session, crossing->now, l2);
	return reason < 0 ? dropped(crossing, DROP_NO_PATH) : reason;
}

static __always_inline int spliced(struct __sk_buff *skb, struct packet *packet, const struct flow *flow, const __u32 l2)
{
	struct crossing crossing = {};
	struct session *session = bpf_map_lookup_elem(&sessions, &flow->slot);
	__u32 active;

	if (!session || session->incarnation != flow->incarnation || session->state == SESSION_FREE) {
		count_drop(DROP_STALE_FLOW);
		return DROP;
	}
	active = session->active;
	crossing.session = session;
	crossing.flow = flow;
	crossing.now = bpf_ktime_get_coarse_ns();
	if (flow->leg == LEG_SERVER) {
		crossing.carrier = session->handover.from_leg ? leg_of_two(session, packet) : active;
		crossing.in = &session->legs[LEG_SERVER];
		crossing.out = crossing.mobile = mobile_leg(session, crossing.carrier);
		crossing.data = &session->down;
		crossing.back = &session->up;
	} else {
		crossing.carrier = flow->leg;
		crossing.drains = flow->leg == session->handover.from_leg && flow->leg != active;
		crossing.in = crossing.mobile = mobile_leg(session, flow->leg);
		crossing.out = &session->legs[LEG_SERVER];
		crossing.data = &session->up;
		crossing.back = &session->down;
		crossing.from_mobile = 1;
	}
	if (crossing.in->state == LEG_HANDSHAKE)
		return NEXT;
	/*
	 * The mobile's host uses the addresses again, for a new connection to the listener (RFC 6191). Anybody can send such
	 * a SYN: the flow goes when the mobile has shown that it got the listener's answer.
	 */
	if (crossing.from_mobile && session->state != SESSION_OPEN && (packet->flags & (SYN | ACK | RST)) == SYN)
		return arrival(skb, packet);
	if (damaged(skb, packet))
		return dropped(&crossing, DROP_CHECKSUM);
	if (crossing.from_mobile && session->state != SESSION_OPEN && crossing.in->flags & LEG_SUCCEEDED &&
	    packet->flags & ACK && packet->acknowledgment == crossing.in->consumed) {
		bpf_map_delete_elem(&flows, &packet->key);
		return arrival(skb, packet);
	}
	if (session->state == SESSION_RESETTING) {
		if (!(packet->flags & RST))
			tell(EVENT_SPOKE, flow, packet->acknowledgment);
		return dropped(&crossing, DROP_STALE_FLOW);
	}
	if (session->state != SESSION_OPEN && session->state != SESSION_CLOSING)
		return dropped(&crossing, DROP_STALE_FLOW);
	if (crossing.from_mobile && ((flow->leg != active && !crossing.drains) || crossing.in->state != LEG_LIVE))
		return dropped(&crossing, DROP_STALE_LEG);
	/* Between two legs, of which the new one cannot take anything yet. */
	if (!crossing.from_mobile && session->handover.from_leg && !crossing.carrier && !(packet->flags & RST))
		return dropped(&crossing, DROP_STOPPED);
	return cross(skb, packet, &crossing, l2);
}

static __always_inline int broken(const struct flow_key *key, __u32 reason)
{
	/* Only what would have been ours: the host's own traffic is not judged here. */
	if (!bpf_map_lookup_elem(&flows, key))
		return NEXT;
	count_drop(reason);
	return DROP;
}

static __always_inline void enter(struct busy **mine)
{
	__u32 processor = bpf_get_smp_processor_id();

	*mine = bpf_map_lookup_elem(&busy, &processor);
	if (*mine)
		*(volatile __u64 *)&(*mine)->count += 1;
}

static __always_inline void leave(struct busy *mine)
{
	if (mine)
		*(volatile __u64 *)&mine->count += 1;
}

static __always_inline int ingress(struct __sk_buff *skb, const __u32 l2)
{
	struct packet packet = {};
	struct busy *mine;
	struct flow *flow;
	int verdict;

	/* A tag that is still there belongs to a VLAN interface, which gets the packet next; what is for another host, to a
	 * bridge. */
	if (skb->pkt_type != 0 || skb->vlan_present)
		return NEXT;
	switch (parse(skb, &packet, l2)) {
	case TCP:
		break;
	case TCP_MALFORMED:
		return broken(&packet.key, DROP_MALFORMED);
	case TCP_FRAGMENT:
		return broken(&packet.key, DROP_FRAGMENT);
	case TCP_IP_OPTIONS:
		return broken(&packet.key, DROP_IP_OPTIONS);
	case ICMP_ERROR:
		return icmp_error(skb, l2);
	default:
		return NEXT;
	}
	/* The session is looked at inside, so that a daemon that has stopped a leg can wait for those that saw it live. */
	enter(&mine);
	flow = bpf_map_lookup_elem(&flows, &packet.key);
	verdict = flow ? spliced(skb, &packet, flow, l2) : arrival(skb, &packet);
	leave(mine);
	return verdict;
}

#endif
