# Copies ORIGINAL to COPY with the bug MUTANT in it.
file(READ ${ORIGINAL} content)

# change(<text> <other text>): the text must be there, once.
function(change text other)
  string(FIND "${content}" "${text}" at)
  string(FIND "${content}" "${text}" last REVERSE)
  if(at EQUAL -1 OR NOT at EQUAL last)
    message(FATAL_ERROR "mutate.cmake: the bug '${MUTANT}' no longer applies to ${ORIGINAL}; find its new place")
  endif()
  string(REPLACE "${text}" "${other}" changed "${content}")
  set(content "${changed}" PARENT_SCOPE)
endfunction()

if(MUTANT STREQUAL "lost_ack")
  # Answers although the batch could not be written.
  change("for (absl::Status& status : outcome.statuses) status = outcome.written" "(void)0")
elseif(MUTANT STREQUAL "double_dispatch")
  # Forgets that devices are held.
  change("if (held.count(device) == 0) view.free.push_back(device)" "view.free.push_back(device)")
elseif(MUTANT STREQUAL "stale_device")
  # Gives away what the process of an attempt uses that was lost and is still there.
  change("held.insert(devices.begin(), devices.end())" "(void)devices")
elseif(MUTANT STREQUAL "stale_publish")
  # Takes reports of an attempt that was replaced.
  change("HoldsDevices(job->state) && job->attempt == attempt.attempt" "HoldsDevices(job->state)")
elseif(MUTANT STREQUAL "missed_cancel")
  # Never tells the agent.
  change("if (IsStopping(job->state)) Send(Effect::Kind::kStop, *job)" "(void)0")
elseif(MUTANT STREQUAL "forgotten_epoch")
  # Gives numbers again that attempts had which the backup does not know.
  change("std::max(j.attempt, epoch_ * kAttemptsPerEpoch) + 1" "j.attempt + 1")
elseif(MUTANT STREQUAL "forgotten_quarantine")
  # Gives work to nodes that are drained or quarantined.
  change("if (!node.TakesWork()) continue;\n    NodeView view" "if (!node.ready) continue;\n    NodeView view")
elseif(MUTANT STREQUAL "needless_preemption")
  # Stops what is as urgent as what waits.
  change("other.service_class > job.service_class" "other.service_class >= job.service_class")
elseif(MUTANT STREQUAL "endless_preemption")
  # Gives what was stopped its devices back before the more urgent job that they were taken for.
  change("beyond->second == job.service_class" "true")
elseif(MUTANT STREQUAL "robbed_guarantee")
  # Takes from a tenant that has no more than is its own.
  change("theirs->second.Borrows(taken + AllDevices(other))" "theirs->second.Borrows(taken)")
elseif(MUTANT STREQUAL "borrowed_first")
  # Gives what was taken back to whoever is next.
  change("for (const bool own : {true, false})" "for (const bool own : {false})")
elseif(MUTANT STREQUAL "uncounted_storage")
  # Counts the checkpoints that were replaced, too.
  change("report.checkpoint->bytes - job->stored_bytes" "report.checkpoint->bytes")
elseif(MUTANT STREQUAL "kept_checkpoint")
  # Leaves the checkpoint of a job that is over.
  change("IsTerminal(*next) && job.stored_step > 0" "false")
elseif(MUTANT STREQUAL "leaked_device")
  # Leaves attempts with a node that is gone.
  change("LoseAttemptOn(id, *Find(job), why, now)" "(void)job")
elseif(MUTANT STREQUAL "endless_crashes")
  # Goes on with a job whose trainer dies wherever it runs.
  change("job.crashed_on.size() >= kMaxCrashNodes" "false")
elseif(MUTANT STREQUAL "shared_name")
  # Lets two tenants publish under one name.
  change("IsOfAnother(job.model.empty() ? job.id : job.model, job.tenant)" "false")
elseif(MUTANT STREQUAL "forgotten_peers")
  # Leaves the other parts of an attempt where they are when one has ended.
  change("for (const Place& place : job.others) StopRest(job, place, now)" "(void)0")
elseif(MUTANT STREQUAL "half_a_gang")
  # Counts what an attempt holds on its leading node only.
  change("for (const Place& place : job.others) devices += place.devices.size()" "(void)0")
elseif(MUTANT STREQUAL "forgotten_rewind")
  # An agent that dials again does not send again what got lost.
  change("if (Entry* entry = Find(ack.attempt())) entry->Rewind(ack.sequence())" "(void)ack")
elseif(MUTANT STREQUAL "spared_stale")
  # An agent goes on with an attempt that is not current any more.
  change("if (Entry* entry = Find(name)) entry->Abandon()" "(void)name")
elseif(MUTANT STREQUAL "unsynced_report")
  # A report is sent before it is on the disk, so that a crash can give its number to another one.
  change("handed_out_ >= durable_" "handed_out_ >= last_")
elseif(MUTANT STREQUAL "early_release")
  # An agent says that devices are free which a trainer still uses that it was told to stop.
  change("stage_ == Stage::kTrain ||" "(stage_ == Stage::kTrain && wish_ == Wish::kNone) ||")
elseif(MUTANT STREQUAL "forgotten_last_word")
  # An agent that was started again has forgotten what the trainer said last.
  change("if (report.has_trainer_event()) Hear(WordOf(report.trainer_event()))" "(void)0")
else()
  message(FATAL_ERROR "mutate.cmake: unknown bug '${MUTANT}'")
endif()

file(WRITE ${COPY} "${content}")
