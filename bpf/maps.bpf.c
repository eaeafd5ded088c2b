//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The maps that all signals share, as an object of their own. */
#include "tapio.h"

const struct head *unused_head __attribute__((unused));
const enum signal unused_signal __attribute__((unused));
