#include "client/cli/private_ca.h"

#include <arpa/inet.h>
#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <memory>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "lib/artifact/durable_file.h"
#include "lib/base/status_macros.h"

namespace luthier {
namespace {

// An authority that runs out stops every node at once; its key lies offline. Certificates are made anew sooner.
constexpr long kAuthorityDays = 3650;
constexpr long kCertificateDays = 825;

struct Free {
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
  void operator()(X509* certificate) const { X509_free(certificate); }
  void operator()(X509_EXTENSION* extension) const { X509_EXTENSION_free(extension); }
  void operator()(BIO* bio) const { BIO_free(bio); }
};
template <typename T>
using Owned = std::unique_ptr<T, Free>;

struct Identity {
  Owned<EVP_PKEY> key;
  Owned<X509> certificate;
};

absl::Status OpenSslError(absl::string_view what) { return absl::InternalError(absl::StrCat("OpenSSL cannot ", what)); }

bool Extend(X509& certificate, X509& issuer, int kind, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, &issuer, &certificate, nullptr, nullptr, 0);
  const Owned<X509_EXTENSION> extension(X509V3_EXT_conf_nid(nullptr, &context, kind, value.c_str()));
  return extension != nullptr && X509_add_ext(&certificate, extension.get(), -1) == 1;
}

// Signed by `authority`, or by itself if there is none. `names`: as subjectAltName wants them, empty: none.
absl::StatusOr<Identity> MakeIdentity(const std::string& common_name, const std::string& usage,
                                      const std::string& names, absl::Time now, long days, const Identity* authority) {
  Identity made{Owned<EVP_PKEY>(EVP_EC_gen("P-256")), Owned<X509>(X509_new())};
  X509* const certificate = made.certificate.get();
  unsigned char serial[16];
  if (made.key == nullptr || certificate == nullptr || RAND_bytes(serial, sizeof serial) != 1)
    return OpenSslError("make a key");
  serial[0] &= 0x7f;  // positive
  const std::unique_ptr<BIGNUM, void (*)(BIGNUM*)> number(BN_bin2bn(serial, sizeof serial, nullptr), BN_free);
  BN_to_ASN1_INTEGER(number.get(), X509_get_serialNumber(certificate));
  X509_set_version(certificate, X509_VERSION_3);
  ASN1_TIME_set(X509_getm_notBefore(certificate), absl::ToTimeT(now - absl::Hours(1)));  // clocks differ
  ASN1_TIME_set(X509_getm_notAfter(certificate), absl::ToTimeT(now + absl::Hours(24 * days)));
  X509_set_pubkey(certificate, made.key.get());
  X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate), "CN", MBSTRING_UTF8,
                             reinterpret_cast<const unsigned char*>(common_name.c_str()), -1, -1, 0);
  X509* const issuer = authority == nullptr ? certificate : authority->certificate.get();
  X509_set_issuer_name(certificate, X509_get_subject_name(issuer));
  bool good = Extend(*certificate, *issuer, NID_basic_constraints,
                     authority == nullptr ? "critical,CA:TRUE,pathlen:0" : "critical,CA:FALSE") &&
              Extend(*certificate, *issuer, NID_key_usage,
                     authority == nullptr ? "critical,keyCertSign,cRLSign" : "critical,digitalSignature") &&
              Extend(*certificate, *issuer, NID_subject_key_identifier, "hash");
  // Two authorities of this name in one file are told apart by it.
  if (authority != nullptr) good = good && Extend(*certificate, *issuer, NID_authority_key_identifier, "keyid:always");
  if (!usage.empty()) good = good && Extend(*certificate, *issuer, NID_ext_key_usage, usage);
  if (!names.empty()) good = good && Extend(*certificate, *issuer, NID_subject_alt_name, names);
  EVP_PKEY* const signer = authority == nullptr ? made.key.get() : authority->key.get();
  if (!good || X509_sign(certificate, signer, EVP_sha256()) == 0) return OpenSslError("sign a certificate");
  return made;
}

std::string TextOf(BIO& bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(&bio, &data);
  return std::string(data, static_cast<size_t>(size));
}

absl::Status Write(const Identity& identity, const std::string& path) {
  const Owned<BIO> certificate(BIO_new(BIO_s_mem())), key(BIO_new(BIO_s_mem()));
  if (PEM_write_bio_X509(certificate.get(), identity.certificate.get()) != 1 ||
      PEM_write_bio_PrivateKey(key.get(), identity.key.get(), nullptr, nullptr, 0, nullptr, nullptr) != 1) {
    return OpenSslError("write a certificate");
  }
  LUTHIER_RETURN_IF_ERROR(WriteFileDurably(path + ".pem", TextOf(*certificate)));
  LUTHIER_RETURN_IF_ERROR(WriteFileDurably(path + ".key", TextOf(*key)));
  if (chmod((path + ".key").c_str(), 0600) != 0) return FileError(path + ".key", "protect", errno);
  return absl::OkStatus();
}

absl::StatusOr<std::string> AlternativeNames(const std::vector<std::string>& hosts) {
  std::vector<std::string> names = {"DNS:localhost", "IP:127.0.0.1", "IP:::1"};
  for (const std::string& host : hosts) {
    in6_addr address;
    const auto belongs = [](char c) { return absl::ascii_isalnum(c) || c == '-' || c == '.'; };
    if (inet_pton(AF_INET, host.c_str(), &address) == 1 || inet_pton(AF_INET6, host.c_str(), &address) == 1) {
      names.push_back("IP:" + host);
    } else if (!host.empty() && std::all_of(host.begin(), host.end(), belongs)) {
      names.push_back("DNS:" + host);
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat("--host: '", host, "' is neither a name nor an address; leave the port out"));
    }
  }
  return absl::StrJoin(names, ",");
}

}  // namespace

absl::Status WritePrivateCa(const std::string& to, const std::vector<std::string>& hosts, absl::Time now) {
  LUTHIER_ASSIGN_OR_RETURN(const std::string names, AlternativeNames(hosts));
  if (std::filesystem::exists(to))
    return absl::AlreadyExistsError(absl::StrCat("--to: ", to, " exists; give a folder that does not"));
  // The folder first, so that no key is ever readable by others.
  LUTHIER_RETURN_IF_ERROR(CreateFolders(std::filesystem::absolute(to)));
  if (chmod(to.c_str(), 0700) != 0) return FileError(to, "protect", errno);
  LUTHIER_ASSIGN_OR_RETURN(const Identity authority,
                           MakeIdentity("Luthier private CA", "", "", now, kAuthorityDays, nullptr));
  LUTHIER_ASSIGN_OR_RETURN(const Identity server,
                           MakeIdentity("luthierd", "serverAuth", names, now, kCertificateDays, &authority));
  LUTHIER_ASSIGN_OR_RETURN(const Identity client,
                           MakeIdentity("luthier client", "clientAuth", "", now, kCertificateDays, &authority));
  LUTHIER_RETURN_IF_ERROR(Write(authority, to + "/ca"));
  LUTHIER_RETURN_IF_ERROR(Write(server, to + "/server"));
  return Write(client, to + "/client");
}

}  // namespace luthier
