#include "worker/trainer/distributed/ranks.h"

#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include <chrono>
#include <exception>
#include <utility>

#include "absl/strings/str_cat.h"
#include "worker/trainer/distributed/nccl.h"

namespace luthier {
namespace {

// Small gradients travel together: an adapter has hundreds, and each journey costs a tenth of a millisecond.
constexpr int64_t kBucketBytes = 16 << 20;

// Ranks wait while the leading one evaluates, which may take hours. A rank that dies is noticed at once by its closed
// connections, so that this need not find it.
constexpr std::chrono::hours kPatience{24 * 30};

// Gloo would wait for the last rank as long as for anything else that a rank has to say.
void Meet(c10d::FileStore& store, const RankPlace& place) {
  if (store.add("here", 1) == place.size) store.set("all here", {1});
  try {
    store.wait({"all here"}, place.patience);
  } catch (const std::exception&) {
    throw LostRank(absl::StrCat("of ", place.size, " ranks ", store.add("here", 0), " have come within ",
                                place.patience.count(), " ms"));
  }
}

}  // namespace

struct Ranks::Group {
  RankPlace place;
  c10::intrusive_ptr<c10d::ProcessGroupGloo> gloo;
  std::unique_ptr<Nccl> nccl;  // once something on a GPU is added up

  void Sum(const Tensor& tensor) {
    if (tensor.is_cuda()) return SumOnGpus(tensor);
    std::vector<Tensor> tensors{tensor};
    try {
      gloo->allreduce(tensors)->wait();
    } catch (const std::exception& error) {
      throw LostRank(absl::StrCat("another rank cannot be reached any more: ", error.what()));
    }
  }

  void SumOnGpus(const Tensor& tensor) {
    if (nccl == nullptr) {
      const Tensor meeting = place.rank == 0 ? Nccl::NewMeeting() : at::zeros({Nccl::kMeetingBytes}, at::kByte);
      Sum(meeting);
      nccl = std::make_unique<Nccl>(place.rank, place.size, meeting);
    }
    nccl->Sum(tensor);
  }
};

Ranks::Ranks(const RankPlace& place) : place_(place) {
  if (place.size == 1) return;
  try {
    // A file in memory that every rank opens for itself, since its lock belongs to the opening.
    const auto store = c10::make_intrusive<c10d::FileStore>(absl::StrCat("/proc/self/fd/", place.rendezvous), -1);
    Meet(*store, place);
    auto options = c10d::ProcessGroupGloo::Options::create(kPatience);
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1"));
    group_ = std::make_shared<Group>(
        Group{place, c10::make_intrusive<c10d::ProcessGroupGloo>(store, place.rank, place.size, std::move(options)),
              nullptr});
  } catch (const std::exception& error) {
    throw LostRank(absl::StrCat("the ranks do not find each other: ", error.what()));
  }
}

void Ranks::Sum(const std::vector<Tensor>& tensors) const {
  if (group_ == nullptr) return;
  at::NoGradGuard no_grad;
  for (size_t begin = 0; begin < tensors.size();) {
    size_t end = begin;
    std::vector<Tensor> flat;
    for (int64_t bytes = 0; end < tensors.size(); ++end) {
      bytes += static_cast<int64_t>(tensors[end].nbytes());
      if (end > begin && bytes > kBucketBytes) break;
      flat.push_back(tensors[end].flatten());
    }
    const Tensor bucket = flat.size() == 1 ? flat[0] : at::cat(flat);
    group_->Sum(bucket);
    for (int64_t offset = 0; begin < end; ++begin) {
      const Tensor& tensor = tensors[begin];
      if (!bucket.is_alias_of(tensor)) tensor.copy_(bucket.narrow(0, offset, tensor.numel()).view(tensor.sizes()));
      offset += tensor.numel();
    }
  }
}

int64_t Ranks::Agree(int64_t value) const {
  if (group_ == nullptr) return value;
  const Tensor said = at::full({1}, leads() ? value : 0, at::kLong);
  Sum({said});
  return said.item<int64_t>();
}

Tensor Ranks::Gather(const Tensor& mine) const {
  if (group_ == nullptr) return mine;
  const int64_t size = mine.numel();
  const Tensor all = at::zeros({this->size() * size}, mine.options());
  all.narrow(0, rank() * size, size).copy_(mine);
  Sum({all});
  return all;
}

}  // namespace luthier
