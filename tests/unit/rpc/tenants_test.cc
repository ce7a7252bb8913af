// Tenants through the API, and the queue that they share.
#include <gmock/gmock.h>

#include <cstdint>
#include <utility>

#include "tests/unit/rpc/services_fixture.h"

namespace luthier {
namespace {

using ::testing::HasSubstr;
using Jobs = v1::FineTuningService::Stub;
using Queues = v1::QueueService::Stub;

class TenantsTest : public ServicesTest {
 protected:
  void SetUp() override { AddInputs(); }
};

TEST_F(TenantsTest, TheQueueShowsHowManyNodesAndDevicesAJobNeeds) {
  v1::CreateFineTuningJobRequest request = RequestFor("j");
  request.mutable_job()->mutable_spec()->mutable_resources()->set_nodes(2);
  request.mutable_job()->mutable_spec()->mutable_resources()->set_devices(3);
  Create(request);
  v1::Queue queue;
  ASSERT_TRUE(Call(*queue_, &Queues::GetQueue, v1::GetQueueRequest(), queue).ok());
  ASSERT_EQ(queue.entries_size(), 1);
  EXPECT_EQ(queue.entries(0).nodes(), 2);
  EXPECT_EQ(queue.entries(0).devices(), 6);
}

TEST_F(TenantsTest, TheQueueHasWhatWaitsAfterALossToo) {
  Connect("n1");
  Create(RequestFor("j"));
  Do([](State& state, absl::Time now) { EXPECT_TRUE(state.Drain("n1", /*requeue=*/false, now).ok()); });
  Report("j", 1, 1, JobInput::kAttemptLost);
  v1::Queue queue;
  ASSERT_TRUE(Call(*queue_, &Queues::GetQueue, v1::GetQueueRequest(), queue).ok());
  EXPECT_EQ(queue.depth(), 1);
  ASSERT_EQ(queue.entries_size(), 1);
  EXPECT_EQ(queue.entries(0).job(), "jobs/j");
  EXPECT_NE(queue.entries(0).pending_reason(), "");
}

TEST_F(TenantsTest, SharesTheQueueAmongTenants) {
  v1::UpdateTenantRequest update;
  update.mutable_tenant()->set_name("tenants/research");
  update.mutable_tenant()->set_weight(2);
  update.mutable_tenant()->set_max_queued_jobs(1);
  v1::Tenant tenant;
  ASSERT_TRUE(Call(*queue_, &Queues::UpdateTenant, update, tenant).ok());
  v1::CreateFineTuningJobRequest request = RequestFor("a");
  request.mutable_job()->set_tenant("research");
  Create(request);
  request.set_job_id("b");
  v1::FineTuningJob refused;
  const grpc::Status full = Call(*jobs_, &Jobs::CreateFineTuningJob, request, refused);
  EXPECT_EQ(full.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(ReasonOf(full), "TENANT_QUEUE_FULL");
  EXPECT_TRUE(ParseErrorDetails(full.error_details()).retry_delay.has_value()) << "jobs leave the queue";
  EXPECT_EQ(ParseErrorDetails(full.error_details()).quota_subject, "tenants/research");
  request = RequestFor("urgent");
  request.mutable_job()->set_service_class(v1::SERVICE_CLASS_INTERACTIVE);
  Create(request);
  v1::Queue queue;
  ASSERT_TRUE(Call(*queue_, &Queues::GetQueue, v1::GetQueueRequest(), queue).ok());
  EXPECT_EQ(queue.depth(), 2);
  ASSERT_EQ(queue.entries_size(), 2);
  EXPECT_EQ(queue.entries(0).job(), "jobs/urgent");
  EXPECT_EQ(queue.entries(1).tenant(), "research");
  EXPECT_EQ(queue.entries(1).pending_code(), v1::PENDING_REASON_NO_NODE);
  v1::ListTenantsResponse tenants;
  ASSERT_TRUE(Call(*queue_, &Queues::ListTenants, v1::ListTenantsRequest(), tenants).ok());
  ASSERT_EQ(tenants.tenants_size(), 2);
  EXPECT_EQ(tenants.tenants(0).name(), "tenants/default");
  EXPECT_GT(tenants.tenants(0).storage_bytes(), 0) << "the rows that its jobs learn from";
  EXPECT_EQ(tenants.tenants(1).queued_jobs(), 1);
  update.mutable_tenant()->set_name("tenants/re.search");
  EXPECT_THAT(Call(*queue_, &Queues::UpdateTenant, update, tenant).error_message(),
              HasSubstr("tenant.name: 're.search' is no id"))
      << "no job could be of it";
  update.mutable_tenant()->set_name("tenants/research");
  update.mutable_tenant()->set_weight(-1);
  EXPECT_EQ(Call(*queue_, &Queues::UpdateTenant, update, tenant).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(TenantsTest, MoreMayBeGuaranteedThanIsThereAndTheOperatorIsTold) {
  Connect("n1", 4);
  v1::UpdateTenantRequest update;
  update.mutable_tenant()->set_name("tenants/research");
  update.mutable_tenant()->set_guaranteed_devices(4);
  update.mutable_update_mask()->add_paths("guaranteed_devices");
  v1::Tenant tenant;
  ASSERT_TRUE(Call(*queue_, &Queues::UpdateTenant, update, tenant).ok());
  EXPECT_EQ(tenant.guaranteed_devices(), 4);
  EXPECT_EQ(tenant.weight(), 1) << "what the mask does not name stays";
  EXPECT_EQ(tenant.warnings_size(), 0);
  update.mutable_tenant()->set_name("tenants/support");
  update.mutable_tenant()->set_guaranteed_devices(2);
  ASSERT_TRUE(Call(*queue_, &Queues::UpdateTenant, update, tenant).ok());
  ASSERT_EQ(tenant.warnings_size(), 1);
  EXPECT_THAT(tenant.warnings(0),
              HasSubstr("6 devices are guaranteed to tenants in all, and the connected nodes have 4"));

  update.mutable_tenant()->set_max_devices(1);
  update.mutable_update_mask()->add_paths("max_devices");
  const grpc::Status refused = Call(*queue_, &Queues::UpdateTenant, update, tenant);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(refused.error_message(), HasSubstr("tenant.guaranteed_devices: 2 are more than tenant.max_devices"));
  v1::ExplainFineTuningJobRequest request;
  v1::CreateFineTuningJobRequest wide = RequestFor("wide");
  wide.mutable_job()->set_tenant("support");
  Create(wide);
  request.set_name("jobs/wide");
  v1::ExplainFineTuningJobResponse explained;
  ASSERT_TRUE(Call(*jobs_, &Jobs::ExplainFineTuningJob, request, explained).ok());
  EXPECT_THAT(explained.tenant_summary(), HasSubstr("devices guaranteed 2"));
}

TEST_F(TenantsTest, OnlyWhatTheMaskNamesIsCheckedAndAllOfItAtOnce) {
  v1::UpdateTenantRequest update;
  update.mutable_tenant()->set_name("tenants/research");
  update.mutable_tenant()->set_weight(2);
  update.mutable_tenant()->set_max_devices(-1);
  update.mutable_update_mask()->add_paths("weight");
  v1::Tenant tenant;
  const grpc::Status named = Call(*queue_, &Queues::UpdateTenant, update, tenant);
  EXPECT_TRUE(named.ok()) << named.error_message();
  EXPECT_EQ(tenant.max_devices(), 0);

  update.mutable_tenant()->set_weight(0);
  update.mutable_tenant()->set_max_devices(1);
  update.mutable_tenant()->set_guaranteed_devices(2);
  for (const char* field : {"max_devices", "guaranteed_devices"}) update.mutable_update_mask()->add_paths(field);
  const grpc::Status refused = Call(*queue_, &Queues::UpdateTenant, update, tenant);
  EXPECT_THAT(FieldsOf(refused), testing::ElementsAre("tenant.weight", "tenant.guaranteed_devices"));
  v1::ListTenantsResponse tenants;
  ASSERT_TRUE(Call(*queue_, &Queues::ListTenants, v1::ListTenantsRequest(), tenants).ok());
  EXPECT_EQ(tenants.tenants(1).weight(), 2) << "what was refused changed nothing";
}

// What its jobs have published and stored counts, and is never refused; what users add is.
TEST_F(TenantsTest, ATenantThatStoresAsMuchAsItMayAddsNothingMoreAndLosesNothing) {
  v1::UpdateTenantRequest update;
  update.mutable_tenant()->set_name("tenants/default");
  update.mutable_update_mask()->add_paths("max_storage_bytes");
  v1::Tenant tenant;
  const auto limit = [&](int64_t bytes) {
    update.mutable_tenant()->set_max_storage_bytes(bytes);
    ASSERT_TRUE(Call(*queue_, &Queues::UpdateTenant, update, tenant).ok());
  };
  limit(0);
  const int64_t rows = tenant.storage_bytes();
  ASSERT_GT(rows, 0);
  limit(rows + 1000);
  Connect("n1");
  Create(RequestFor("j"));
  Report("j", 1, 1, JobInput::kTrainerStarted);
  Report("j", 1, 2, JobInput::kTrainerFinished);
  Do([](State& state, absl::Time now) {
    luthier::Report stored{.attempt = {"j", 1}, .sequence = 3, .input = JobInput::kArtifactStored};
    stored.version_bytes = 5000;
    EXPECT_TRUE(state.Record(std::move(stored), now));
  });
  limit(rows + 1000);
  EXPECT_EQ(tenant.storage_bytes(), rows + 5000) << "beyond its limit, and published";

  v1::FineTuningJob refused;
  const grpc::Status job = Call(*jobs_, &Jobs::CreateFineTuningJob, RequestFor("k"), refused);
  EXPECT_EQ(job.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(ReasonOf(job), "TENANT_STORAGE_FULL");
  EXPECT_FALSE(ParseErrorDetails(job.error_details()).retry_delay.has_value()) << "waiting does not help";
  EXPECT_EQ(ParseErrorDetails(job.error_details()).quota_subject, "tenants/default");
  v1::Dataset dataset;
  const grpc::Status upload = Upload("more", ChatLine("a", "b"), dataset);
  EXPECT_EQ(upload.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(upload.error_message(), HasSubstr("more do not fit"));

  v1::DeleteModelVersionRequest old;
  old.set_name("models/j/versions/1");
  google::protobuf::Empty nothing;
  ASSERT_TRUE(Call(*models_, &v1::ModelService::Stub::DeleteModelVersion, old, nothing).ok());
  limit(rows + 1000);
  EXPECT_EQ(tenant.storage_bytes(), rows);
  Create(RequestFor("k"));
  ASSERT_TRUE(Upload("more", ChatLine("a", "b"), dataset).ok());
  v1::DeleteDatasetRequest unused;
  unused.set_name("datasets/more");
  ASSERT_TRUE(Call(*datasets_, &v1::DatasetService::Stub::DeleteDataset, unused, nothing).ok());
  limit(0);
  EXPECT_EQ(tenant.storage_bytes(), rows);
}

}  // namespace
}  // namespace luthier
