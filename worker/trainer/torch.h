// The part of LibTorch that the trainer uses, as one precompiled header: <torch/torch.h> costs 25 s a file.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

namespace luthier {

using at::Tensor;

}  // namespace luthier
