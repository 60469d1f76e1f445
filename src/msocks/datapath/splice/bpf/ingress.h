/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * A packet's way through the splice, from top to bottom: whose it is, whether it is plausible, what it says (noted
 * before anybody else hears it), how that is said on the other leg, and where it goes.
 */
#ifndef MSOCKS_INGRESS_H
#define MSOCKS_INGRESS_H

#include "arrivals.h"
#include "crossing.h"
#include "damage.h"
#include "handover.h"
#include "layout.h"
#include "maps.h"
#include "park.h"
#include "parse.h"
#include "path.h"
#include "rewrite.h"
#include "streams.h"

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
