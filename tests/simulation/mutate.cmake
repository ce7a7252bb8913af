# Copies the core to COPY and puts the bug MUTANT into the copy.
foreach(file batch job job_table policy state)
  file(READ ${CORE}/${file}.cc ${file})
endforeach()

# change(<file> <text> <other text>): the text must be there, once.
function(change file text other)
  string(FIND "${${file}}" "${text}" at)
  string(FIND "${${file}}" "${text}" last REVERSE)
  if(at EQUAL -1 OR NOT at EQUAL last)
    message(FATAL_ERROR "mutate.cmake: the bug '${MUTANT}' no longer applies to ${file}.cc; find its new place")
  endif()
  string(REPLACE "${text}" "${other}" changed "${${file}}")
  set(${file} "${changed}" PARENT_SCOPE)
endfunction()

if(MUTANT STREQUAL "lost_ack")
  # Answers although the batch could not be written.
  change(batch "for (absl::Status& status : outcome.statuses) status = outcome.written" "(void)0")
elseif(MUTANT STREQUAL "double_dispatch")
  # Forgets that devices are held.
  change(state "if (held.count(device) == 0) view.free.push_back(device)" "view.free.push_back(device)")
elseif(MUTANT STREQUAL "stale_publish")
  # Takes reports of an attempt that was replaced.
  change(state "HoldsDevices(job->state) && job->attempt == attempt.attempt" "HoldsDevices(job->state)")
elseif(MUTANT STREQUAL "missed_cancel")
  # Never tells the agent.
  change(state "if (IsStopping(job->state)) Send(Effect::Kind::kStop, *job)" "(void)0")
elseif(MUTANT STREQUAL "leaked_device")
  # Leaves attempts with a node that is gone.
  change(state "LoseAttempt(*Find(job), absl::StrCat(\"node \", id, \" was not heard of for \", absl::FormatDuration(kLease)), now)" "(void)job")
else()
  message(FATAL_ERROR "mutate.cmake: unknown bug '${MUTANT}'")
endif()

foreach(file batch job job_table policy state)
  file(WRITE ${COPY}/${file}.cc "${${file}}")
endforeach()
