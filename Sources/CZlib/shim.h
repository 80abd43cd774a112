// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <zlib.h>
// These are macros that pass the version and the size of the structure.
static inline int cz_inflate_init(z_stream *_Nonnull stream, int window_bits) {
  return inflateInit2(stream, window_bits);
}
// The most memory, for which deflate finds matches fastest, and else what zlib takes by itself.
static inline int cz_deflate_init(z_stream *_Nonnull stream, int window_bits) {
  return deflateInit2(
      stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, window_bits, 9, Z_DEFAULT_STRATEGY);
}
