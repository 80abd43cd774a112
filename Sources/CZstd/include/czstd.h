// SPDX-License-Identifier: Apache-2.0
//
// Frames of zstd for Swift. Functions return a count of bytes, or -errno. Source: zstd.h, "Simple
// API", "Explicit context"; RFC 8878.
#pragma once
#include <stddef.h>
#include <sys/types.h>

#pragma clang assume_nonnull begin

/// Loads the library; any thread may call it, any number of times. Returns NULL, or what is wrong.
const char *_Nullable czstd_load(void);

// Nothing below may be called before the library is loaded.

/// The state of a decompressor, of a fixed size whatever the frames say; NULL without memory.
void *_Nullable czstd_create_decompressor(void);
void czstd_free_decompressor(void *decompressor);

/// Bytes of the frame that `source` starts with; -EINVAL when it is none or passes `count`.
ssize_t czstd_frame_count(const void *source, size_t count);

/// Decompresses one whole frame; -EINVAL when it is damaged or gives more than `room` bytes.
ssize_t czstd_decompress_frame(
    void *decompressor, void *target, size_t room, const void *source, size_t count);

/// Compresses all of `source` into one frame; -ENOSPC when it takes more than `room` bytes.
ssize_t czstd_compress(void *target, size_t room, const void *source, size_t count);

#pragma clang assume_nonnull end
