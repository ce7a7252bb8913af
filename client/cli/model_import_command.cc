#include <filesystem>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "client/cli/cache.h"
#include "client/cli/command.h"
#include "client/cli/model_files.h"
#include "client/cli/output.h"
#include "client/cli/text.h"
#include "client/cli/waiting_line.h"
#include "client/hub/address.h"
#include "client/hub/download.h"
#include "client/hub/environment.h"
#include "lib/base/status_macros.h"
#include "lib/wire/json_wire.h"

namespace luthier {
namespace {

struct Arguments {
  std::string id;
  std::string source;
};

// Where the repository lies by now, and what it is.
absl::StatusOr<v1::RegisterBaseModelRequest> DownloadedFromHub(CommandContext& context, const std::string& source) {
  LUTHIER_ASSIGN_OR_RETURN(const HubAddress address, ParseHubAddress(source));
  LUTHIER_ASSIGN_OR_RETURN(Hub::Options options, HubOptionsFromEnvironment());
  options.on_wait = [&context](absl::Duration wait) {
    if (context.err_terminal().interactive) context.err() << "\r\x1b[K";  // in place of the progress
    context.Say(absl::StrCat("the hub asks to wait for ", DurationText(wait)));
  };
  LUTHIER_ASSIGN_OR_RETURN(const std::unique_ptr<Hub> hub, Hub::Open(std::move(options)));
  const std::string cache = std::filesystem::absolute(CacheFolder()).lexically_normal() / "hub";
  const auto show = [&context](const std::string& what) { return context.ShowTransfer(what); };
  LUTHIER_ASSIGN_OR_RETURN(const HubFolder folder, DownloadFromHub(*hub, address, cache, show));
  v1::RegisterBaseModelRequest request;
  request.set_source_path(folder.path);
  request.set_source("hf://" + address.repository);
  request.set_revision(folder.commit);
  context.Say(absl::StrCat(request.source(), "@", folder.commit, ", ", FormatBytes(folder.bytes), ", verified"));
  return request;
}

absl::StatusOr<v1::BaseModel> Register(CommandContext& context, Client& client,
                                       const v1::RegisterBaseModelRequest& request) {
  const WaitingLine line(context.err(), context.err_terminal(), [&] {
    return absl::StrCat("importing  the server reads and stores ", OneLine(request.source_path()));
  });
  return client.RegisterBaseModel(request);
}

absl::StatusOr<v1::BaseModel> ImportFromHub(CommandContext& context, Client& client, const std::string& id,
                                            const std::string& source) {
  // Whoever has no server hears of it before gigabytes come.
  const absl::Status there = client.GetBaseModel(FullName("baseModels", id)).status();
  if (!there.ok() && !absl::IsNotFound(there)) return there;
  LUTHIER_ASSIGN_OR_RETURN(v1::RegisterBaseModelRequest request, DownloadedFromHub(context, source));
  request.set_base_model_id(id);
  absl::StatusOr<v1::BaseModel> model = Register(context, client, request);
  if (!absl::IsInvalidArgument(model.status())) return model;
  return absl::InvalidArgumentError(
      absl::StrCat(model.status().message(), "\nthe files are in ", request.source_path(),
                   ", which the server reads itself; where it cannot, run this on its machine, or set "
                   "LUTHIER_CACHE_DIR to a folder that it can read under the same path"));
}

absl::StatusOr<v1::BaseModel> ImportFolder(CommandContext& context, Client& client, const std::string& id,
                                           const std::string& folder) {
  v1::RegisterBaseModelRequest request;
  request.set_base_model_id(id);
  request.set_source_path(std::filesystem::absolute(folder).lexically_normal().string());
  return Register(context, client, request);
}

absl::Status Import(CommandContext& context, const Arguments& arguments) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  const std::string id(absl::StripPrefix(arguments.id, "baseModels/"));
  absl::StatusOr<v1::BaseModel> registered = IsHubAddress(arguments.source)
                                                 ? ImportFromHub(context, *client, id, arguments.source)
                                                 : ImportFolder(context, *client, id, arguments.source);
  LUTHIER_ASSIGN_OR_RETURN(const v1::BaseModel model, std::move(registered));
  if (context.ForPrograms()) {
    context.PrintForPrograms(MessageToJson(model));
    return absl::OkStatus();
  }
  context.Say(FactsText(model));
  context.out() << model.name() << std::endl;
  return absl::OkStatus();
}

}  // namespace

void AddModelImportCommand(CLI::App& model, CommandContext& context) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App& command = context.AddCommand(
      model, "import",
      "Register a base model: a folder in Hugging Face format that the server can read, or a repository of the hub",
      "  luthier model import luthier-tiny examples/base/luthier-tiny\n"
      "  luthier model import llama-3.2-1b /models/Llama-3.2-1B-Instruct\n"
      "  luthier model import qwen-0.5b hf://Qwen/Qwen2.5-0.5B-Instruct\n"
      "  HF_TOKEN=hf_... luthier model import gemma hf://google/gemma-2-2b-it@main   # one that asks for a licence\n",
      [&context, arguments] { return Import(context, *arguments); });
  command.add_option("NAME", arguments->id, "Name to register it under")->required();
  command
      .add_option("SOURCE", arguments->source,
                  "Folder on the server's machine with config.json, *.safetensors, tokenizer.json; or "
                  "hf://ORG/REPO[@REVISION], which is downloaded into the cache of this user (LUTHIER_CACHE_DIR) "
                  "for the server to read there")
      ->required();
}

}  // namespace luthier
