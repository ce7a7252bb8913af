// The hot operations of the forward pass, a file each, with an explicit backward that saves less, or runs fewer passes,
// than recorded autograd would. tests/unit/trainer/ops_test.cc holds the plain forms that they are compared with.
//
// Shape suffixes, here and in models/:
//   T tokens of a micro-batch (documents end to end, no padding)   D hidden size    F intermediate size   V vocabulary
//   N query heads   K key/value heads   H head size   P pairs of a head that rotate   E experts
//   I inputs, O outputs of a linear layer   R rank of an adapter   B rows of a batch, S keys of a cache (generation)
// A 1 is an axis of that size; what else a letter means is said in the file or function that uses it.
#pragma once

#include "worker/trainer/ops/attention.h"
#include "worker/trainer/ops/gated_unit.h"
#include "worker/trainer/ops/linear.h"
#include "worker/trainer/ops/lora_linear.h"
#include "worker/trainer/ops/loss_head.h"
#include "worker/trainer/ops/norm.h"
#include "worker/trainer/ops/recompute.h"
#include "worker/trainer/ops/rotary.h"
