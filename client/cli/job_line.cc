#include "client/cli/job_line.h"

#include "client/cli/watch_view.h"
#include "lib/wire/json_wire.h"

namespace luthier {

void PrintJobLine(CommandContext& context, const v1::FineTuningJob& job) {
  if (context.ForPrograms()) return context.PrintForPrograms(MessageToJson(job));
  context.out() << job.name();
  if (context.format() != OutputFormat::kName) context.out() << "  " << StateWord(job.state(), context.out_terminal());
  context.out() << std::endl;
}

}  // namespace luthier
