// y = x W for quantized W: what the kernels of all instruction sets compute, and how they are called.
//
// Each row of x is cut into blocks like those of W, and each block is quantized to int8 by its largest
// magnitude. A block's product is then one of integers, which is exact:
//
//     D[m, n, b] = sum over k in b of x_q[m, k] * (w_q[n, k] - zero_point[n, b])
//     y[m, n]    = (s0 + s1) + (s2 + s3) + bias[n]
//     s_i        = sum over b = i, i + 4, i + 8, ... of float(D[m, n, b]) * (scale_w[n, b] * scale_x[m, b])
//
// with every product and sum of floats rounded on its own and taken in this order. So a row's result is the
// same bits in every kernel, for any number of rows and threads. The four sums are four lanes of a vector.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qtool {

// Blocks that are worked on together; also the number of partial sums.
constexpr int64_t kGroup = 4;

// Most bytes that a kernel reads of W at once, and the alignment of buffers.
constexpr size_t kVectorBytes = 64;

// W as the operator MatMulNBits of com.microsoft has it, where it lies in memory.
struct Weights {
  int64_t columns = 0;  // n
  int64_t depth = 0;    // k
  int bits = 4;         // 2, 4 or 8
  int block_size = 32;  // elements of k that share a scale
  int64_t blocks = 0;   // of each column

  const uint8_t* values = nullptr;       // (columns, blocks, block_size * bits / 8), low bits first
  const float* scales = nullptr;         // (columns, blocks)
  const uint8_t* zero_points = nullptr;  // (columns, ceil(blocks * bits / 8)), or null for 2^(bits - 1)
  const float* bias = nullptr;           // (columns), or null

  int64_t groups() const { return (blocks + kGroup - 1) / kGroup; }
  int64_t block_bytes() const { return int64_t{block_size} * bits / 8; }
  int64_t column_bytes() const { return blocks * block_bytes(); }
  int64_t zero_point_bytes() const { return (blocks * bits + 7) / 8; }
};

// Rows of x, quantized. Blocks are padded with zeros to whole groups.
//
// Values stand in the order in which the weights' bits are unpacked. For `few_rows` these are a group's: first
// the values that meet the lowest bits of each byte, block by block, then those that meet the next ones, and so
// on. For `many_rows` they are a block's, each block has its values to itself, and the sums may be multiplied: see
// `kAbove`.
struct QuantizedRows {
  int64_t rows = 0;
  bool for_many = false;  // whether they are for `many_rows`, which reads `kMostTileRows` - 1 rows more
  int64_t groups = 0;
  int64_t group_values = 0;          // kGroup * block_size
  int8_t* values = nullptr;          // (rows, groups, group_values)
  float* scales = nullptr;           // (rows, groups, kGroup)
  int32_t* negative_sums = nullptr;  // (rows, groups, kGroup): minus the sum of a block's values

  int8_t* row_values(int64_t row) const { return values + row * groups * group_values; }
  float* row_scales(int64_t row) const { return scales + row * groups * kGroup; }
  int32_t* row_negative_sums(int64_t row) const { return negative_sums + row * groups * kGroup; }
};

struct Range {
  int64_t begin = 0;
  int64_t end = 0;

  int64_t size() const { return end - begin; }
};

// Where results go: that of the m-th row and the n-th column of those that are asked for is at data[m * stride + n].
struct Output {
  float* data = nullptr;
  int64_t stride = 0;
};

// Rows and columns of the tiles of `many_rows`: how work is best cut, and what its buffer is for.
constexpr int64_t kTileRows = 256;
constexpr int64_t kTileColumns = 32;

// Most rows that an instruction set takes at a time in a tile.
constexpr int64_t kMostTileRows = 16;

// Elements of k for which a tile's weights are unpacked at a time: 32 columns of them fit a first-level cache.
constexpr int64_t kTileDepth = 1024;

// Memory that one task of many rows works in: `many_rows` in all but `up`.
struct alignas(kVectorBytes) TileBuffer {
  uint8_t weights[kTileDepth * kTileColumns];
  float scales[kTileDepth / 32 * kTileColumns];
  int32_t zero_points[kTileDepth / 32 * kTileColumns];
  float sums[(kTileRows + kMostTileRows - 1) * kGroup * kTileColumns];
  float up[kTileRows * kTileColumns];
};

// The kernels of one instruction set for one width of weights and size of blocks.
struct MatMulKernels {
  // Quantizes x[row], `depth` numbers. A block that holds infinity or NaN gets the scale NaN.
  void (*quantize_row)(const float* x, int64_t depth, const QuantizedRows& out, int64_t row);

  // All rows of x with the columns of the range; weights stream through once.
  void (*few_rows)(const Weights& w, const QuantizedRows& x, Range columns, Output y);

  // At most kTileRows rows with at most kTileColumns columns, of weights that are unpacked once.
  void (*many_rows)(const Weights& w, const QuantizedRows& x, Range rows, Range columns, Output y, TileBuffer& buffer);
};

// Widths and block sizes that there are kernels for, in the order of `InstructionSet::matmul`.
struct WeightFormat {
  int bits;
  int block_size;
};
constexpr WeightFormat kWeightFormats[] = {{2, 32},  {2, 64}, {2, 128}, {4, 32}, {4, 64},
                                           {4, 128}, {8, 32}, {8, 64},  {8, 128}};
constexpr int kWeightFormatCount = 9;

}  // namespace qtool
