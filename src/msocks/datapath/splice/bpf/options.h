/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * TCP options that name sequence numbers or clocks: timestamps (RFC 7323 section 3) and SACK blocks (RFC 2018 section 3).
 *
 * Nearly every segment has the timestamps alone, behind two NOPs; that layout is read and written in place. Everything
 * else goes through a copy of the options, one byte at a time, in a bpf_loop(): the verifier follows its body once,
 * where an ordinary loop would be followed through every layout there is.
 */
#ifndef MSOCKS_OPTIONS_H
#define MSOCKS_OPTIONS_H

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "checksum.h"
#include "layout.h"
#include "parse.h"

#define OPTION_END 0
#define OPTION_NOP 1
#define OPTION_MSS 2
#define OPTION_SACK 5
#define OPTION_TIMESTAMPS 8

#define TIMESTAMPS_BEHIND_NOPS bpf_htonl(0x0101080a)
#define TIMESTAMPS_ALONE 12

enum option_changes {
	CHANGE_TIMESTAMPS = 1 << 0,
	CHANGE_SACK = 1 << 1,
	STRIP_TIMESTAMPS = 1 << 2,
	STRIP_SACK = 1 << 3,
	FIND_TIMESTAMPS = 1 << 4, /* read them, change nothing */
	LOWER_MSS = 1 << 5,
};

struct option_work {
	__u8 bytes[64]; /* 40 at the most; masked indices stay inside */
	__u32 size;
	__u32 at;
	__u32 changes;
	/* in: */
	__u32 tsval_shift; /* added */
	__u32 tsecr;	   /* what is to stand there */
	__u32 sack_shift;  /* added to the edges */
	__u32 sack_base;   /* the cumulative ACK as it leaves */
	__u32 sack_floor;  /* where the stream begins on this leg, as it leaves */
	__u32 sack_end;	   /* the end of what the receiver of the block has sent, as it leaves: none beyond */
	__u32 mss;
	/* out: */
	__u32 tsval_found;
	__u32 tsecr_found;
	__u32 found; /* CHANGE_TIMESTAMPS where there were some */
};

static __always_inline __u32 get_word(const __u8 *bytes, __u32 at)
{
	return (__u32)bytes[at & 63] << 24 | (__u32)bytes[(at + 1) & 63] << 16 | (__u32)bytes[(at + 2) & 63] << 8 |
	       bytes[(at + 3) & 63];
}

static __always_inline void put_word(__u8 *bytes, __u32 at, __u32 word)
{
	bytes[at & 63] = word >> 24;
	bytes[(at + 1) & 63] = word >> 16;
	bytes[(at + 2) & 63] = word >> 8;
	bytes[(at + 3) & 63] = word;
}

static __always_inline void put_nops(__u8 *bytes, __u32 at)
{
	put_word(bytes, at, 0x01010101);
}

/*
 * Puts the block at `at` to `to`, changed; returns where the next one goes. A block below the cumulative ACK reports a
 * duplicate (RFC 2883); it is passed on where this leg has carried those bytes. A block of what the other leg does not
 * know is left out: an empty one in its place would lie inside the next, and read as the report of a duplicate. So is
 * one that begins at the ACK: Linux would think that the receiver has thrown away what it had (reneged).
 */
static __always_inline __u32 change_block(struct option_work *work, __u32 at, __u32 to)
{
	__u32 left = get_word(work->bytes, at) + work->sack_shift;
	__u32 right = get_word(work->bytes, at + 4) + work->sack_shift;

	__u32 sign; /* its highest bit says that something is left */

	if ((__s32)(right - work->sack_base) <= 0) {
		sign = ~(left - work->sack_floor);
	} else {
		/* No receiver has what its ACK ends at: this one lacks something that lies before the stream. */
		if ((__s32)(left - work->sack_base) <= 0)
			right = left;
		if ((__s32)(right - work->sack_end) > 0)
			right = work->sack_end;
		sign = left - right;
	}
	put_word(work->bytes, to, left);
	put_word(work->bytes, to + 4, right);
	/* Without a branch: the verifier would follow each block's way through all that comes behind. */
	return to + (sign >> 31) * 8;
}

/* bpf_loop() passes on a pointer into the stack alone. */
struct option_turn {
	struct option_work *work;
};

static long change_next_option(__u32 turn, struct option_turn *context)
{
	struct option_work *work = context->work;
	__u32 at = work->at, kind, length;

	if (at >= work->size)
		return 1;
	kind = work->bytes[at & 63];
	if (kind == OPTION_END)
		return 1;
	if (kind == OPTION_NOP) {
		work->at = at + 1;
		return 0;
	}
	length = work->bytes[(at + 1) & 63];
	if (length < 2 || at + length > work->size)
		return 1;
	if (kind == OPTION_TIMESTAMPS && length == 10) {
		work->tsval_found = get_word(work->bytes, at + 2);
		work->tsecr_found = get_word(work->bytes, at + 6);
		work->found |= CHANGE_TIMESTAMPS;
		if (work->changes & STRIP_TIMESTAMPS) {
			put_nops(work->bytes, at);
			put_nops(work->bytes, at + 4);
			put_nops(work->bytes, at + 6);
		} else if (work->changes & CHANGE_TIMESTAMPS) {
			put_word(work->bytes, at + 2, work->tsval_found + work->tsval_shift);
			put_word(work->bytes, at + 6, work->tsecr);
		}
	} else if (kind == OPTION_MSS && length == 4) {
		__u32 mss = (__u32)work->bytes[(at + 2) & 63] << 8 | work->bytes[(at + 3) & 63];

		if (work->changes & LOWER_MSS && work->mss < mss) {
			work->bytes[(at + 2) & 63] = work->mss >> 8;
			work->bytes[(at + 3) & 63] = work->mss;
		}
	} else if (kind == OPTION_SACK && length >= 10 && (length & 7) == 2) {
		__u32 kept = length, i;

		if (work->changes & STRIP_SACK) {
			kept = 0;
		} else if (work->changes & CHANGE_SACK) {
			__u32 to = change_block(work, at + 2, at + 2);

			if (length >= 18)
				to = change_block(work, at + 10, to);
			if (length >= 26)
				to = change_block(work, at + 18, to);
			if (length >= 34)
				to = change_block(work, at + 26, to);
			kept = to - at;
			kept -= kept == 2 ? 2 : 0;
			work->bytes[(at + 1) & 63] = kept;
		}
		for (i = 0; i < 34; i++)
			if (i - kept < length - kept)
				work->bytes[(at + i) & 63] = OPTION_NOP;
	}
	work->at = at + length;
	return 0;
}

/* Works on the options of `packet`; the change of the checksum is added to `sum`. Pointers into the packet are void. */
__noinline int work_on_options(struct __sk_buff *skb, struct option_work *work, __u32 at, __u32 size)
{
	struct option_turn turn = { .work = work };

	if (!work)
		return -1;
	if (size < 4 || size > 40)
		return -1;
	asm volatile("" : "+r"(size));
	if (size < 4 || size > 40)
		return -1;
	if (bpf_skb_load_bytes(skb, at, work->bytes, size) < 0)
		return -1;
	work->size = size;
	work->at = 0;
	work->found = 0;
	bpf_loop(40, change_next_option, &turn, 0);
	return 0;
}

/* Puts the options back, and gives the difference that it makes to a checksum. */
__noinline int put_options(struct __sk_buff *skb, struct option_work *work, __u32 at, __u32 size)
{
	__u8 before[40] = {};
	__s64 difference;

	if (!work)
		return -1;
	if (size < 4 || size > 40)
		return -1;
	asm volatile("" : "+r"(size));
	if (size < 4 || size > 40)
		return -1;
	if (bpf_skb_load_bytes(skb, at, before, size) < 0)
		return -1;
	size &= ~3;
	if (size < 4 || size > 40)
		return -1;
	difference = bpf_csum_diff((__be32 *)before, size, (__be32 *)work->bytes, size, 0);
	if (difference < 0 || bpf_skb_store_bytes(skb, at, work->bytes, size, 0) < 0)
		return -1;
	work->at = difference;
	return 0;
}

#endif
