#include "server/certificate.h"

#include <openssl/bio.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <ctime>
#include <memory>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"

namespace luthier {

absl::StatusOr<absl::Time> CertificateEnd(const std::string& path) {
  const std::unique_ptr<BIO, int (*)(BIO*)> file(BIO_new_file(path.c_str(), "r"), BIO_free);
  const std::unique_ptr<X509, void (*)(X509*)> certificate(
      file == nullptr ? nullptr : PEM_read_bio_X509(file.get(), nullptr, nullptr, nullptr), X509_free);
  std::tm end;
  if (certificate == nullptr || ASN1_TIME_to_tm(X509_get0_notAfter(certificate.get()), &end) != 1)
    return absl::InvalidArgumentError(
        absl::StrCat("--tls-cert: ", path,
                     " holds no certificate in PEM format; give one, or make one with `luthier admin tls init`"));
  return absl::FromTM(end, absl::UTCTimeZone());
}

absl::Status CheckCertificate(const std::string& path, absl::Time now) {
  LUTHIER_ASSIGN_OR_RETURN(const absl::Time end, CertificateEnd(path));
  if (now < end) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("--tls-cert: ", path, " expired at ",
                                                    absl::FormatTime(absl::RFC3339_sec, end, absl::UTCTimeZone()),
                                                    "; renew it, or make a new one with `luthier admin tls init`"));
}

}  // namespace luthier
