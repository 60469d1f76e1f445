/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Where a leg's next hop is. The daemon's own first packet on a leg goes the way that the kernel's tables say, and the
 * egress hook notes it: interface and addresses of the link layer. From then on packets are sent there without a
 * look-up. Once a second the tables are asked again, and that packet goes through the kernel's neighbour table, which
 * so learns that the neighbour is in use, and finds out when it is gone.
 */
#ifndef MSOCKS_PATH_H
#define MSOCKS_PATH_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "layout.h"
#include "maps.h"

#define AF_INET 2
#define AF_INET6 10

#define FRESH_NS 1000000000ULL
#define COMPLAIN_NS 100000000ULL

static __always_inline int may_complain(struct session *session, __u64 now)
{
	if (now - session->complained_ns < COMPLAIN_NS)
		return 0;
	session->complained_ns = now;
	return 1;
}

static __always_inline long ask_the_tables(struct __sk_buff *skb, const struct leg *leg, struct bpf_fib_lookup *fib)
{
	__builtin_memset(fib, 0, sizeof(*fib));
	fib->ifindex = leg->path.ifindex;
	fib->l4_protocol = 6;
	fib->sport = leg->local_port;
	fib->dport = leg->remote_port;
	if (leg->family == 4) {
		fib->family = AF_INET;
		__builtin_memcpy(&fib->ipv4_src, leg->local + 12, 4);
		__builtin_memcpy(&fib->ipv4_dst, leg->remote + 12, 4);
	} else {
		fib->family = AF_INET6;
		__builtin_memcpy(fib->ipv6_src, leg->local, 16);
		__builtin_memcpy(fib->ipv6_dst, leg->remote, 16);
	}
	return bpf_fib_lookup(skb, fib, sizeof(*fib), BPF_FIB_LOOKUP_OUTPUT);
}

/* What leaves through the egress hook of `ifindex`, sent by this host's kernel on `leg`. */
static __noinline int learn_path(struct __sk_buff *skb, struct leg *leg, __u32 ethernet)
{
	struct bpf_fib_lookup fib;
	struct path *path;

	if (!leg)
		return -1;
	path = &leg->path;
	path->ifindex = skb->ifindex;
	path->ethernet = ethernet;
	if (ethernet) {
		__u8 addresses[12] = {};

		bpf_skb_load_bytes(skb, 0, addresses, sizeof(addresses));
		__builtin_memcpy(path->next_hop, addresses, 6);
		__builtin_memcpy(path->own, addresses + 6, 6);
	}
	path->mtu = 0;
	if (ask_the_tables(skb, leg, &fib) == BPF_FIB_LKUP_RET_SUCCESS)
		path->mtu = fib.mtu_result;
	path->fresh_until = bpf_ktime_get_coarse_ns() + FRESH_NS;
	path->known = 1;
	return 0;
}

enum refreshed { PATH_CACHED, PATH_BY_NEIGHBOUR, PATH_GONE };

/* Asks again; `hop` gets the next hop for bpf_redirect_neigh(). */
static __noinline int refresh_path(struct __sk_buff *skb, struct leg *leg, struct bpf_redir_neigh *hop, __u64 now)
{
	struct bpf_fib_lookup fib;
	long result;

	if (!leg || !hop)
		return PATH_GONE;
	result = ask_the_tables(skb, leg, &fib);
	if (result == BPF_FIB_LKUP_RET_SUCCESS) {
		leg->path.mtu = fib.mtu_result;
		__builtin_memcpy(leg->path.next_hop, fib.dmac, 6);
		__builtin_memcpy(leg->path.own, fib.smac, 6);
		leg->path.fresh_until = now + FRESH_NS;
	} else if (result != BPF_FIB_LKUP_RET_NO_NEIGH) {
		return PATH_GONE;
	}
	if (!leg->path.ethernet)
		return PATH_CACHED;
	hop->nh_family = fib.family;
	if (fib.family == AF_INET) {
		hop->ipv4_nh = fib.ipv4_dst;
	} else {
		hop->ipv6_nh[0] = fib.ipv6_dst[0];
		hop->ipv6_nh[1] = fib.ipv6_dst[1];
		hop->ipv6_nh[2] = fib.ipv6_dst[2];
		hop->ipv6_nh[3] = fib.ipv6_dst[3];
	}
	return PATH_BY_NEIGHBOUR;
}

#endif
