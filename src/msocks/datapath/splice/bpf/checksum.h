/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Checksums are changed by differences (RFC 1624), never made anew: what arrived damaged leaves damaged, and the
 * receiver drops it. All words are taken from memory as they lie there, so the byte order does not matter.
 */
#ifndef MSOCKS_CHECKSUM_H
#define MSOCKS_CHECKSUM_H

#include <linux/types.h>

/* A sum of 32-bit words, not folded; 2^32 of them fit. */
typedef __u64 word_sum;

static __always_inline word_sum exchange(word_sum sum, __u32 before, __u32 after)
{
	return sum + (__u32)~before + after;
}

/* To 32 bits, as bpf_l4_csum_replace() takes it. */
static __always_inline __u32 fold_to_word(word_sum sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	return (sum & 0xffffffff) + (sum >> 32);
}

static __always_inline __u16 fold(word_sum sum)
{
	__u32 word = fold_to_word(sum);

	word = (word & 0xffff) + (word >> 16);
	return (word & 0xffff) + (word >> 16);
}

/* What stands in a header's checksum field after the header has changed by `difference`. */
static __always_inline __u16 changed_checksum(__u16 field, word_sum difference)
{
	return ~fold(difference + (__u16)~field);
}

#endif
