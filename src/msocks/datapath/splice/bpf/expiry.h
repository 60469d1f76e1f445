/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Entries that nobody uses any more go by themselves, whether the daemon lives or not: a timer of the kernel's looks at
 * a part of the table ten times a second.
 */
#ifndef MSOCKS_EXPIRY_H
#define MSOCKS_EXPIRY_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "layout.h"
#include "maps.h"
#include "streams.h"

#define PERIOD_NS 100000000ULL
#define ROUND 10 /* turns for the whole table */

#define CLOCK_MONOTONIC 1

struct expiry {
	struct bpf_timer timer;
	__u32 cursor;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct expiry);
} expiries SEC(".maps");

struct expiry_turn {
	__u64 now;
	__u32 first;
	__u32 slots;
};

static __always_inline __u64 patience(const struct config *settings, const struct session *session)
{
	switch (session->state) {
	case SESSION_OPENING:
		return settings->opening_ns;
	case SESSION_CLOSING:
		return settings->closing_ns;
	case SESSION_RESET:
	case SESSION_RESETTING:
		return settings->reset_ns;
	default:
		return all_acknowledged(&session->up) || all_acknowledged(&session->down) ? settings->half_closed_ns :
											    settings->open_ns;
	}
}

static long expire_one(__u32 turn, struct expiry_turn *work)
{
	__u32 slot = work->first + turn;
	struct session *session;
	struct config *settings;
	struct flow flow = {};
	struct flow *known;
	struct flow_key key;
	__u32 leg;

	if (slot >= work->slots)
		return 1;
	session = bpf_map_lookup_elem(&sessions, &slot);
	settings = configuration();
	if (!session || !settings)
		return 1;
	if (session->state == SESSION_FREE || work->now - session->last_ns < patience(settings, session) ||
	    work->now < session->last_ns)
		return 0;
	flow.slot = slot;
	flow.incarnation = session->incarnation;
	for (leg = 0; leg < LEGS; leg++) {
		struct leg *one = leg == 0 ? &session->legs[0] : leg == 1 ? &session->legs[1] : &session->legs[2];

		if (one->state == LEG_NONE)
			continue;
		__builtin_memcpy(key.remote, one->remote, 16);
		__builtin_memcpy(key.local, one->local, 16);
		key.remote_port = one->remote_port;
		key.local_port = one->local_port;
		/* Another session's leg may have the same addresses by now. */
		known = bpf_map_lookup_elem(&flows, &key);
		if (known && known->slot == slot && known->incarnation == session->incarnation)
			bpf_map_delete_elem(&flows, &key);
	}
	session->state = SESSION_FREE;
	tell(EVENT_FREED, &flow, 0);
	return 0;
}

static int expire(void *map, __u32 *key, struct expiry *expiry)
{
	struct config *settings = configuration();
	struct expiry_turn work = {};
	__u32 share;

	if (settings) {
		share = settings->slots / ROUND + 1;
		work.now = bpf_ktime_get_ns();
		work.slots = settings->slots;
		work.first = expiry->cursor;
		bpf_loop(share, expire_one, &work, 0);
		expiry->cursor += share;
		if (expiry->cursor >= settings->slots)
			expiry->cursor = 0;
	}
	bpf_timer_start(&expiry->timer, PERIOD_NS, 0);
	return 0;
}

/* Run once by the loader. A timer that ran under an earlier program goes on with this one. */
SEC("syscall")
int start_expiry(void *context)
{
	struct expiry *expiry;
	__u32 zero = 0;

	expiry = bpf_map_lookup_elem(&expiries, &zero);
	if (!expiry)
		return -1;
	bpf_timer_init(&expiry->timer, &expiries, CLOCK_MONOTONIC);
	if (bpf_timer_set_callback(&expiry->timer, expire))
		return -2;
	return bpf_timer_start(&expiry->timer, PERIOD_NS, 0);
}

#endif
