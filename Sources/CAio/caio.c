// SPDX-License-Identifier: Apache-2.0
//
// SwiftPM wants a source file; all of CAio is in its header.
#include "caio.h"
