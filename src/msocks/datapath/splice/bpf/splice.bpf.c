// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * TCP Splice: two TCP connections of this host become one conversation by rewriting headers (Maltz & Bhagwat, INFOCOM
 * 1998). The host keeps no payload. Programs for the traffic-control hooks (tcx or clsact) of every interface; those
 * with `_l3` for interfaces without link-layer header. docs/explanation/splice.md explains the whole.
 */
#include <stddef.h>

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_helpers.h>

#include "egress.h"
#include "expiry.h"
#include "ingress.h"

SEC("tc")
int splice_ingress(struct __sk_buff *skb)
{
	return ingress(skb, ETH_HLEN);
}

SEC("tc")
int splice_egress(struct __sk_buff *skb)
{
	return egress(skb, ETH_HLEN);
}

SEC("tc")
int splice_ingress_l3(struct __sk_buff *skb)
{
	return ingress(skb, 0);
}

SEC("tc")
int splice_egress_l3(struct __sk_buff *skb)
{
	return egress(skb, 0);
}

/* For the BTF: structures that no map names. */
struct event told __attribute__((unused));
struct packet_event packet_told __attribute__((unused));
struct held_packet packet_held __attribute__((unused));

/* The kernel opens some helpers only to programs under its own licence. */
char _license[] SEC("license") = "GPL";
