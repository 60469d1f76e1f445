/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Where a leg's next hop is. The daemon's own first packet on a leg goes the way that the kernel's tables say, and the
 * egress hook notes it: interface and addresses of the link layer. From then on packets are sent there without a
 * look-up. Once a second one packet is sent by the kernel's routes and neighbours instead, which so learns that the
 * neighbour is in use, and finds out when it is gone; the egress hook notes the way that this one takes. (The tables
 * cannot be asked directly: bpf_fib_lookup() answers routers only.)
 */
#ifndef MSOCKS_PATH_H
#define MSOCKS_PATH_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "layout.h"
#include "maps.h"

#define MISSES_TELL 2 /* so many packets in a row took no way at all */

#define FRESH_NS 1000000000ULL
#define COMPLAIN_NS 100000000ULL

static __always_inline int may_complain(struct session *session, __u64 now)
{
	if (now - session->complained_ns < COMPLAIN_NS)
		return 0;
	session->complained_ns = now;
	return 1;
}

/* What leaves through the egress hook of `skb->ifindex` on `leg`, sent there by this host's kernel. */
__noinline int learn_path(struct __sk_buff *skb, struct leg *leg, __u32 ethernet)
{
	struct path *path;
	__u32 mtu = 0;

	if (!leg)
		return -1;
	path = &leg->path;
	if (ethernet) {
		__u8 addresses[12] = {};

		if (bpf_skb_load_bytes(skb, 0, addresses, sizeof(addresses)) < 0)
			return -1;
		__builtin_memcpy(path->next_hop, addresses, 6);
		__builtin_memcpy(path->own, addresses + 6, 6);
	}
	path->ifindex = skb->ifindex;
	path->ethernet = ethernet;
	/* It does not fit, or it does: either way the MTU is told. */
	bpf_check_mtu(skb, 0, &mtu, 0, 0);
	path->mtu = mtu > 65535 ? 65535 : mtu;
	path->misses = 0;
	path->fresh_until = bpf_ktime_get_coarse_ns() + FRESH_NS;
	path->known = 1;
	return 0;
}

#endif
