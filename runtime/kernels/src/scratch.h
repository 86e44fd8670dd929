// Memory of a thread that grows and stays: allocating for every node would take longer than using it.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

#include "matmul.h"

namespace qtool {

class Scratch {
 public:
  // At least `size` bytes, aligned to kVectorBytes; their contents are not kept.
  unsigned char* reserve(size_t size) {
    if (size > size_) {
      memory_.reset();  // first, so that the old memory can be used again
      memory_.reset(static_cast<unsigned char*>(::operator new (size, std::align_val_t{kVectorBytes})));
      size_ = size;
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(unsigned char* memory) const { ::operator delete (memory, std::align_val_t{kVectorBytes}); }
  };
  std::unique_ptr<unsigned char, Free> memory_;
  size_t size_ = 0;
};

}  // namespace qtool
