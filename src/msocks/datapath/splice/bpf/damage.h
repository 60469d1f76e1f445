/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Whether a segment is what its sender has sent. A router need not look at TCP's checksum; here a segment changes what
 * is known of a session, and the next hop's receiver, who would drop it, does not undo that.
 *
 * A program cannot read `ip_summed`. What the interface has verified (CHECKSUM_UNNECESSARY) is known by its level.
 * Trains have been verified by whoever put them together, or come from a host that leaves the sums to an interface
 * (CHECKSUM_PARTIAL); of single packets of such a host the field holds the sum of the pseudo-header alone. For all
 * others (CHECKSUM_NONE, CHECKSUM_COMPLETE) the sum is made here.
 */
#ifndef MSOCKS_DAMAGE_H
#define MSOCKS_DAMAGE_H

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "checksum.h"
#include "parse.h"

#define PIECE_BYTES 512 /* the most that bpf_csum_diff() takes */
#define MOST_PIECES 128 /* of the longest packet */

struct piece {
	__u8 bytes[PIECE_BYTES];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct piece);
} pieces SEC(".maps");

struct summing {
	struct __sk_buff *skb;
	__u32 at;
	__u32 end;
	__u32 sum;
	__u32 failed;
};

static long sum_piece(__u32 turn, struct summing *what)
{
	__u32 zero = 0, size = what->end - what->at;
	struct piece *piece = bpf_map_lookup_elem(&pieces, &zero);

	if (!piece || what->at >= what->end)
		return 1;
	if (size > PIECE_BYTES)
		size = PIECE_BYTES;
	/* Behind an odd end come zeros (RFC 1071). The verifier wants to see both bounds at the calls. */
	size -= 1;
	asm volatile("" : "+r"(size));
	if (size >= PIECE_BYTES)
		return 1;
	*(__u32 *)(piece->bytes + (size & (PIECE_BYTES - 4))) = 0;
	if (bpf_skb_load_bytes(what->skb, what->at, piece->bytes, size + 1) < 0) {
		what->failed = 1;
		return 1;
	}
	what->at += size + 1;
	what->sum = bpf_csum_diff(NULL, 0, (__be32 *)piece->bytes, (size & (PIECE_BYTES - 4)) + 4, what->sum);
	return 0;
}

static __always_inline __u32 word_of(const __u8 *address, int index)
{
	return ((const __u32 *)address)[index];
}

__noinline int damaged(struct __sk_buff *skb, struct packet *packet)
{
	struct summing what = {};
	word_sum pseudo;
	__u16 field;
	int i;

	if (!packet)
		return 1;
	if (skb->gso_size || bpf_csum_level(skb, BPF_CSUM_LEVEL_QUERY) >= 0)
		return 0;
	/* The ffff of a mapped address adds up to nothing. */
	pseudo = bpf_htons(IPPROTO_TCP) + bpf_htons(packet->wire_length - (packet->l4 - packet->l3));
	for (i = 0; i < 4; i++)
		pseudo += (word_sum)word_of(packet->key.remote, i) + word_of(packet->key.local, i);
	if (bpf_skb_load_bytes(skb, packet->l4 + offsetof(struct tcphdr, check), &field, sizeof(field)) < 0)
		return 1;
	if (field == fold(pseudo) || (!field && fold(pseudo) == 0xffff))
		return 0;
	what.skb = skb;
	what.at = packet->l4;
	what.end = packet->l3 + packet->wire_length;
	bpf_loop(MOST_PIECES + 1, sum_piece, &what, 0);
	return what.failed || fold(pseudo + what.sum) != 0xffff;
}

#endif
