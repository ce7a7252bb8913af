// make-tiny-base FOLDER: the tests' base model (FOLDER/empty, no weights) and rows (FOLDER/train.jsonl), for shell tests.
#include <iostream>

#include "tests/support/text_fixture.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: make-tiny-base FOLDER\n";
    return 2;
  }
  const std::string folder = argv[1];
  luthier::WriteTinyBase(folder + "/empty");
  std::string rows;
  for (int i = 0; i < 24; ++i) rows += luthier::ChatLine("row " + std::to_string(i), i % 2 == 0 ? "even" : "odd");
  luthier::WriteText(folder + "/train.jsonl", rows);
}
