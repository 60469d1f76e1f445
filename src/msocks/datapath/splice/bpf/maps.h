/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* The tables. The daemon sets the sizes before it loads the object, by `limits.sessions`. */
#ifndef MSOCKS_MAPS_H
#define MSOCKS_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "layout.h"

/* Read by the loader: maps that were pinned with another layout are not adopted. */
const volatile __u32 layout_version = LAYOUT_VERSION;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows SEC(".maps");

/* In the daemon's memory as well: it reads and writes a session without a system call. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct session);
} sessions SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct opening_key);
	__type(value, struct flow);
} opening SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct flow_key);
	__type(value, struct cap);
} caps SEC(".maps");

/* Ports that accept mobile legs, in network order. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __be16);
	__type(value, __u8);
} listeners SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct config);
} config SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, DROP_REASONS);
	__type(key, __u32);
	__type(value, __u64);
} drops SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* the number of processors */
	__type(key, __u32);
	__type(value, struct busy);
} busy SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");

/* Events that found no room: the daemon looks through the sessions when this has changed. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} lost SEC(".maps");

/* Copies of the server's segments: apart from the events, which must not go missing where these are many. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 22);
} held SEC(".maps");

/* Of the daemon's own, and here because it has to outlive it: see told_mtus.py. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct told_host);
	__type(value, struct told_mtu);
} told_mtus SEC(".maps");

static __always_inline struct config *configuration(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&config, &zero);
}

static __always_inline void count_drop(__u32 reason)
{
	__u64 *count = bpf_map_lookup_elem(&drops, &reason);

	if (count)
		*count += 1;
}

static __always_inline struct event event_of(__u32 type, const struct flow *flow, __u64 offset)
{
	struct event event = {
		.type = type,
		.slot = flow->slot,
		.incarnation = flow->incarnation,
		.leg = flow->leg,
		.offset = offset,
	};

	return event;
}

static __always_inline void tell(__u32 type, const struct flow *flow, __u64 offset)
{
	struct event event = event_of(type, flow, offset);
	__u32 zero = 0;
	__u64 *count;

	if (bpf_ringbuf_output(&events, &event, sizeof(event), 0) == 0)
		return;
	count = bpf_map_lookup_elem(&lost, &zero);
	if (count)
		__sync_fetch_and_add(count, 1);
}

/* `size` is that of the packet on the wire; its IP header lies at `at` in the skb. */
__noinline int tell_packet(struct __sk_buff *skb, const struct event *what, __u32 at, __u32 size)
{
	struct packet_event *event;
	__u32 have = skb->len;

	if (!what || have < at + 40)
		return -1;
	have -= at;
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event)
		return -1;
	event->event = *what;
	event->length = size;
	if (have > EVENT_PACKET_BYTES)
		have = EVENT_PACKET_BYTES;
	event->copied = have;
	/* The verifier wants to see both bounds at the call. */
	have -= 1;
	asm volatile("" : "+r"(have));
	if (have >= EVENT_PACKET_BYTES || bpf_skb_load_bytes(skb, at, event->packet, have + 1) < 0) {
		bpf_ringbuf_discard(event, 0);
		return -1;
	}
	bpf_ringbuf_submit(event, 0);
	return 0;
}

#endif
