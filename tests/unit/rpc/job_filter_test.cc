#include "server/rpc/job_filter.h"

#include <gmock/gmock.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/unit/rpc/services_fixture.h"

namespace luthier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Jobs = v1::FineTuningService::Stub;

TEST(ParseJobFilterTest, RefusesWhatItDoesNotKnowAndSaysWhat) {
  struct Row {
    std::string filter, message;
  };
  const std::vector<Row> rows = {
      {"state", "'state' is not followed by =, <, <=, >, >= or : and a value"},
      {"base_model != tiny", "'base_model' is not followed by =, <, <=, >, >= or : and a value (there is no !=)"},
      {"state = ", "'state' is not followed by"},
      {"= RUNNING", "'' is not followed by"},
      {"state = RUNNING OR state = QUEUED", "joined by AND only"},
      {"state = RUNNING AND", "does not end with a comparison"},
      {"state = runing", "'runing' is no state; there are QUEUED, "},
      {"state = STATE_UNSPECIFIED", "'STATE_UNSPECIFIED' is no state; there are "},
      {"state > RUNNING", "state: is compared with = only"},
      {"speed = 3", "'speed' cannot be filtered by; give state, base_model"},
      {"create_time = 2026-11-25T08:00:00Z", "create_time: is compared with <"},
      {"create_time > yesterday", "'yesterday' is no time such as"},
      {"create_time < infinite-future", "'infinite-future' is no time such as"},
      {"end_time > infinite-past", "'infinite-past' is no time such as"},
      {"labels.team > 3", "labels.team: is compared with = or :* only"},
      {"labels.team = \"open", "'labels.team' is not followed by"},
      {"labels.\"my key\"", "'labels.my key' is not followed by"},
      {"labels.\"open = 3", "'labels.' is not followed by"},
      {"labels. = 3", "names no label"},
      {std::string(5000, 'a'), "has 5000 characters, and may have 4096"},
      {"model = \"\"", "model: is compared with nothing"},
      {"base_model = baseModels/", "base_model: is compared with nothing"},
      {"model = a AND model = b", "model: a job has one"},
      {"tenant = a AND tenant = tenants/b", "tenant: a job has one"},
      {absl::StrJoin(std::vector<std::string>(33, "model = a"), " AND "), "has more than 32 comparisons"},
  };
  for (const Row& row : rows) {
    const absl::Status status = ParseJobFilter(row.filter, "").status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << row.filter;
    EXPECT_THAT(std::string(status.message()), HasSubstr(row.message)) << row.filter;
  }
  EXPECT_TRUE(absl::IsInvalidArgument(ParseJobFilter("", "priority").status()));
}

TEST(ParseJobFilterTest, TakesStatesInSmallLetters) {
  const auto filter = ParseJobFilter("state = running", "");
  ASSERT_TRUE(filter.ok()) << filter.status();
  EXPECT_THAT(filter->query.states, ElementsAre(JobState::kRunning));
}

TEST(ParseJobFilterTest, ReadsQuotedTextAndNarrowsTimes) {
  const auto filter = ParseJobFilter(
      "labels.note=\"say \\\"a = b AND c\\\"\" AND create_time>=2026-11-25T08:00:00Z AND create_time > "
      "2026-11-25T07:00:00Z AND create_time<=2026-11-25T10:00:00.5+01:00 AND base_model = baseModels/tiny",
      "create_time desc");
  ASSERT_TRUE(filter.ok()) << filter.status();
  ASSERT_EQ(filter->labels.size(), 1u);
  EXPECT_EQ(filter->labels[0].second, "say \"a = b AND c\"");
  const absl::Time eight = absl::FromUnixSeconds(1795593600);
  EXPECT_EQ(filter->query.created_from, eight);
  EXPECT_EQ(filter->query.created_before, eight + absl::Hours(1) + absl::Milliseconds(500) + absl::Microseconds(1));
  EXPECT_EQ(filter->query.base_model, "tiny");
  EXPECT_FALSE(filter->query.oldest_first);
}

TEST(ParseJobFilterTest, KeysOfLabelsMayBeQuoted) {
  const auto filter = ParseJobFilter("labels.\"my \\\"own\\\" key = 3\" = \"a b\" AND labels.\"team\":*", "");
  ASSERT_TRUE(filter.ok()) << filter.status();
  ASSERT_EQ(filter->labels.size(), 2u);
  EXPECT_EQ(filter->labels[0].first, "my \"own\" key = 3");
  EXPECT_EQ(filter->labels[0].second, "a b");
  EXPECT_EQ(filter->labels[1].first, "team");
  EXPECT_EQ(filter->labels[1].second, std::nullopt);
}

class JobListTest : public ServicesTest {
 protected:
  void SetUp() override {
    AddInputs();
    for (const char* id : {"a", "b", "c", "d"}) {
      v1::CreateFineTuningJobRequest request = RequestFor(id);
      (*request.mutable_job()->mutable_labels())["team"] = *id < 'c' ? "search" : "support";
      if (*id == 'd') (*request.mutable_job()->mutable_labels())["again"] = "yes";
      if (*id == 'b') request.mutable_job()->mutable_spec()->set_output_model("shared");
      v1::FineTuningJob job;
      ASSERT_TRUE(Call(*jobs_, &Jobs::CreateFineTuningJob, request, job).ok());
    }
    v1::CancelFineTuningJobRequest cancel;
    cancel.set_name("jobs/c");
    v1::FineTuningJob job;
    ASSERT_TRUE(Call(*jobs_, &Jobs::CancelFineTuningJob, cancel, job).ok());
  }
  // Ids of all pages.
  std::vector<std::string> List(const std::string& filter, const std::string& order_by = "", int page_size = 0) {
    v1::ListFineTuningJobsRequest request;
    request.set_filter(filter);
    request.set_order_by(order_by);
    request.set_page_size(page_size);
    std::vector<std::string> ids;
    do {
      v1::ListFineTuningJobsResponse page;
      const grpc::Status status = Call(*jobs_, &Jobs::ListFineTuningJobs, request, page);
      EXPECT_TRUE(status.ok()) << status.error_message();
      EXPECT_LE(page.jobs_size(), page_size > 0 ? page_size : 50);
      for (const v1::FineTuningJob& job : page.jobs()) ids.push_back(job.name().substr(5));
      request.set_page_token(page.next_page_token());
    } while (!request.page_token().empty());
    return ids;
  }
};

TEST_F(JobListTest, FiltersAndOrders) {
  EXPECT_THAT(List(""), ElementsAre("d", "c", "b", "a"));
  EXPECT_THAT(List("", "create_time"), ElementsAre("a", "b", "c", "d"));
  EXPECT_THAT(List("labels.team = search"), ElementsAre("b", "a"));
  EXPECT_THAT(List("labels.team = \"support\" AND state = QUEUED"), ElementsAre("d"));
  EXPECT_THAT(List("labels.again:*"), ElementsAre("d"));
  EXPECT_THAT(List("model = shared"), ElementsAre("b"));
  EXPECT_THAT(List("base_model = base AND tenant = default AND state = CANCELLED"), ElementsAre("c"));
  EXPECT_THAT(List("base_model = another"), IsEmpty());
  EXPECT_THAT(List("create_time < 2020-01-01T00:00:00Z"), IsEmpty());
  EXPECT_THAT(List("create_time > 2020-01-01T00:00:00Z").size(), 4u);
  EXPECT_THAT(List("end_time < 2099-01-01T00:00:00Z"), ElementsAre("c")) << "what is not over has no end";
}

TEST_F(JobListTest, PagesHoldNoMoreThanAskedForAndMissNothing) {
  for (int size = 1; size <= 4; ++size) {
    EXPECT_THAT(List("labels.team = search", "", size), ElementsAre("b", "a"));
    EXPECT_THAT(List("labels.team:*", "create_time", size), ElementsAre("a", "b", "c", "d"));
    EXPECT_THAT(List("state = QUEUED", "", size), ElementsAre("d", "b", "a"));
  }
}

TEST_F(JobListTest, APageEndsBeforeItIsTooLargeForAClient) {
  constexpr int kJobs = 900;
  for (int i = 0; i < kJobs; ++i) {
    v1::CreateFineTuningJobRequest request = RequestFor(absl::StrCat("long-", i));
    for (int label = 0; label < 16; ++label)
      (*request.mutable_job()->mutable_labels())[absl::StrCat("label", label)] = std::string(250, 'x');
    v1::FineTuningJob job;
    ASSERT_TRUE(Call(*jobs_, &Jobs::CreateFineTuningJob, request, job).ok());
  }
  v1::ListFineTuningJobsRequest request;
  request.set_page_size(1000);
  int listed = 0, pages = 0;
  do {
    v1::ListFineTuningJobsResponse page;
    ASSERT_TRUE(Call(*jobs_, &Jobs::ListFineTuningJobs, request, page).ok());
    EXPECT_LT(page.ByteSizeLong(), size_t{4} << 20);
    listed += page.jobs_size();
    ++pages;
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  EXPECT_EQ(listed, kJobs + 4);
  EXPECT_EQ(pages, 2);
}

TEST_F(JobListTest, WhatIsListedIsInOneOfTheStatesAndPassesTheFilter) {
  v1::ListFineTuningJobsRequest request;
  request.set_filter("state = QUEUED");
  request.add_states(v1::FineTuningJob::CANCELLED);
  v1::ListFineTuningJobsResponse page;
  ASSERT_TRUE(Call(*jobs_, &Jobs::ListFineTuningJobs, request, page).ok());
  EXPECT_EQ(page.jobs_size(), 0);
  request.add_states(v1::FineTuningJob::QUEUED);
  ASSERT_TRUE(Call(*jobs_, &Jobs::ListFineTuningJobs, request, page).ok());
  EXPECT_EQ(page.jobs_size(), 3);
}

TEST_F(JobListTest, ANumberThatNoStateHasIsRefusedAndNotAnEmptyList) {
  for (const int state : {0, -1, 77}) {
    v1::ListFineTuningJobsRequest request;
    request.mutable_states()->Add(state);
    v1::ListFineTuningJobsResponse page;
    const grpc::Status status = Call(*jobs_, &Jobs::ListFineTuningJobs, request, page);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), HasSubstr(absl::StrCat("states: ", state, " is no state")));
  }
}

TEST_F(JobListTest, EverythingThatIsWrongWithARequestIsSaidAtOnce) {
  v1::ListFineTuningJobsRequest request;
  request.set_page_size(-1);
  request.set_filter("a ~ b");
  request.set_order_by("loss");
  request.mutable_states()->Add(77);
  v1::ListFineTuningJobsResponse page;
  const grpc::Status status = Call(*jobs_, &Jobs::ListFineTuningJobs, request, page);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  for (const char* field : {"page_size: ", "filter: ", "order_by: ", "states: "})
    EXPECT_THAT(status.error_message(), HasSubstr(field));
}

TEST_F(JobListTest, ATokenIsOfOneList) {
  v1::ListFineTuningJobsRequest request;
  request.set_page_size(1);
  v1::ListFineTuningJobsResponse page;
  ASSERT_TRUE(Call(*jobs_, &Jobs::ListFineTuningJobs, request, page).ok());
  request.set_page_token(page.next_page_token());
  ASSERT_TRUE(Call(*jobs_, &Jobs::ListFineTuningJobs, request, page).ok());
  request.set_order_by("create_time");
  const grpc::Status status = Call(*jobs_, &Jobs::ListFineTuningJobs, request, page);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("page_token"));
}

}  // namespace
}  // namespace luthier
