// luthier-trainer export: an adapter in another form.
#include <CLI/CLI.hpp>
#include <memory>

#include "lib/base/status_macros.h"
#include "worker/trainer/commands/command.h"
#include "worker/trainer/export/conversion.h"
#include "worker/trainer/export/export_place.h"

namespace luthier {
namespace {

absl::Status Export(const Conversion& conversion) {
  LUTHIER_RETURN_IF_ERROR(
      CheckExportPlace("--out", conversion.place, {{"--base", conversion.base}, {"--adapter", conversion.adapter}}));
  return Convert(conversion);
}

}  // namespace

void AddExportCommand(CLI::App& app, Action& action) {
  const auto conversion = std::make_shared<Conversion>();
  CLI::App* command =
      app.add_subcommand("export", "Write a tuned model in another form; the files are read again and compared.");
  command->add_option("--base", conversion->base, "Base model folder")->required();
  command->add_option("--adapter", conversion->adapter, "Adapter folder in PEFT format")->required();
  command
      ->add_option("--format", conversion->form,
                   "merged: a model folder in Hugging Face format; gguf: an adapter for llama.cpp")
      ->required()
      ->check(CLI::IsMember({"merged", "gguf"}));
  command
      ->add_option("--out", conversion->place,
                   "Folder (merged) or file (gguf) to write; replaced only if it is an earlier export")
      ->required();
  command->callback([&action, conversion] { action = [conversion] { return ExitCodeOf(Export(*conversion)); }; });
}

}  // namespace luthier
