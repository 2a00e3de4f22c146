// The safetensors reader on files that are missing, truncated or lying: each an Error that names the file,
// the tensor, the value and the limit. Method: files written byte by byte, one fault each; and every cut and
// every flipped header byte of a good one.
#include "src/model/safetensors.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "src/model/checkpoint.h"
#include "src/model/config.h"
#include "src/model/fingerprint.h"
#include "src/model/weight_source.h"

namespace quire {
namespace {

using nlohmann::json;

// A folder of its own for each test.
class SafetensorsFiles : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "quire-safetensors-XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  std::string path(const std::string& name) const { return dir_ + "/" + name; }
  void write(const std::string& name, const std::string& bytes) const {
    std::ofstream(path(name), std::ios::binary) << bytes;
  }
  std::string open_error(const std::string& bytes) const {
    write("t.safetensors", bytes);
    const Result<SafetensorsFile> file = SafetensorsFile::open(path("t.safetensors"));
    return file ? "accepted" : file.error().message;
  }

  std::string dir_;
};

std::string with_length(uint64_t length, const std::string& rest) {
  std::string bytes(8, '\0');
  for (size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(length >> (8 * i));
  return bytes + rest;
}
std::string file_of(const std::string& header, size_t data_bytes) {
  return with_length(header.size(), header + std::string(data_bytes, '\1'));
}
const char* const kGoodHeader =
    R"({"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[3],"data_offsets":[16,22]},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}})";

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST_F(SafetensorsFiles, ReadsTensorsInTheOrderOfTheirBytes) {
  write("t.safetensors", file_of(kGoodHeader, 22));
  const Result<SafetensorsFile> file = SafetensorsFile::open(path("t.safetensors"));
  ASSERT_TRUE(file) << file.error().message;
  ASSERT_EQ(file->tensors().size(), 2u);
  EXPECT_EQ(file->tensors()[0].name, "a");
  EXPECT_EQ(file->tensors()[0].shape, (std::vector<int64_t>{2, 2}));
  EXPECT_EQ(file->tensors()[1].float_dtype(), DType::kBF16);
  EXPECT_EQ(file->tensors()[1].data - file->tensors()[0].data, 16);
}

TEST_F(SafetensorsFiles, NamesEachFaultOfTheHeader) {
  const std::string t = R"("dtype":"F32","shape":[2],"data_offsets":[0,8])";
  const std::pair<std::string, std::string> cases[] = {
      {"[]", "does not begin with an object"},
      {" {}", "does not begin with an object"},
      {"{", "not valid JSON"},
      {R"({"a":{)" + t + R"(}} x)", "not valid JSON"},
      {"{\"\xff\":{" + t + "}}", "not valid JSON at byte 3"},
      {R"({"a":{)" + t + "}}" + std::string(1, '\0') + "garbage", "not valid JSON at byte 55, a NUL byte"},
      {R"({"a":{)" + t + R"(},"a":{)" + t + "}}", "tensor `a` is there twice"},
      {R"({"a":{)" + t + R"(,"dtype":"F32"}})", "field `dtype` is there twice"},
      {R"({"a":{)" + t + R"(,"stride":[1]}})", "unknown field `stride`"},
      {R"({"a":{"dtype":"F32","shape":[2]}})", "dtype, shape and data_offsets are wanted"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}})", "data_offsets has 1 numbers"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4,8]}})", "data_offsets has 3 numbers"},
      {R"({"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}})", "unknown dtype `F99`"},
      {R"({"a":{"dtype":7,"shape":[2],"data_offsets":[0,8]}})", "tensor `a`, field `dtype`"},
      {R"({"a":{"dtype":"F32","shape":["2"],"data_offsets":[0,8]}})", "tensor `a`, field `shape`"},
      {R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", "-2, a negative number"},
      {R"({"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}})", "a fraction"},
      {R"({"a":{"dtype":"F32","shape":[[2]],"data_offsets":[0,8]}})", "a list is not allowed"},
      {R"({"a":{"dtype":"F32","shape":{"x":2},"data_offsets":[0,8]}})", "an object is not allowed"},
      {R"({"a":[1]})", "a list is not allowed"},
      {R"({"a":null})", "null is not allowed"},
      {R"({"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,8]}})", "more than 8 numbers"},
      {R"({"a":{"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,8]}})",
       "field `shape`: 9223372036854775808 is too large; the limit is 9223372036854775807"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551615]}})",
       "field `data_offsets`: 18446744073709551615 is too large; the limit is 9223372036854775807"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551616]}})",
       "field `data_offsets`: 18446744073709551616 is too large; the limit is 9223372036854775807"},
      {R"({"a":{"dtype":"F32","shape":[-18446744073709551616],"data_offsets":[0,8]}})",
       "field `shape`: -18446744073709551616, a negative number is not allowed there"},
      {R"({"a":{"dtype":18446744073709551616,"shape":[2],"data_offsets":[0,8]}})",
       "field `dtype`: a number is not allowed there"},
      {R"({"a":{"dtype":"F32","shape":[)" + std::string(300, '9') + R"(],"data_offsets":[0,8]}})",
       "field `shape`: " + std::string(40, '9') + "... is too large"},
      {R"({"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]}})",
       "has no size in bytes"},
      {R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})",
       "takes 12 bytes; data_offsets [0, 8] give 8"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", "end before they begin"},
      {R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}})",
       "end at 16; the file has 8 bytes of tensors"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
       "4 bytes after the last tensor belong to no tensor"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
       "4 bytes between `the header` and tensor `a`"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
       "tensor `b` begins at 4 and overlaps `a`, which ends at 8"},
      {"{}", "8 bytes after the last tensor"},
      {R"({"__metadata__":{"a":1},"a":{)" + t + "}}", "is not allowed"},
      {"{\"" + std::string(2000, 'n') + "\":{" + t + "}}", "name has 2000 bytes; the limit is 1024"}};
  EXPECT_TRUE(contains(open_error(file_of(R"({"a":[]})", 8)),
                       "tensor `a`: a list is not allowed in place of an object"));
  for (const auto& [header, message] : cases) {
    const std::string got = open_error(file_of(header, 8));
    EXPECT_TRUE(contains(got, message)) << header << "\n  gives: " << got;
    EXPECT_TRUE(contains(got, "t.safetensors")) << got;
  }
}

TEST_F(SafetensorsFiles, NamesFaultsOfTheFile) {
  EXPECT_TRUE(contains(open_error(""), "0 bytes; a safetensors file has at least 8"));
  EXPECT_TRUE(contains(open_error("1234567"), "7 bytes"));
  EXPECT_TRUE(contains(open_error(with_length(100'000'001, "{}")),
                       "header of 100000001 bytes; the limit is 100000000"));
  EXPECT_TRUE(contains(open_error(with_length(UINT64_MAX, "{}")),
                       "header of 18446744073709551615 bytes; the limit is 100000000"));
  EXPECT_TRUE(contains(open_error(with_length(50, "{}")), "only 2 bytes follow: the file is truncated"));
  const Result<SafetensorsFile> absent = SafetensorsFile::open(path("absent"));
  ASSERT_FALSE(absent);
  EXPECT_EQ(absent.error().code, Code::kNotFound);
  const Result<SafetensorsFile> folder = SafetensorsFile::open(dir_);
  ASSERT_FALSE(folder);
  EXPECT_TRUE(contains(folder.error().message, "not a regular file"));
  ASSERT_EQ(mkfifo(path("fifo").c_str(), 0600), 0);
  const Result<SafetensorsFile> fifo = SafetensorsFile::open(path("fifo"));  // nobody writes to it
  ASSERT_FALSE(fifo);
  EXPECT_TRUE(contains(fifo.error().message, "fifo: not a regular file")) << fifo.error().message;
}

TEST_F(SafetensorsFiles, RefusesEveryTruncation) {
  const std::string good = file_of(kGoodHeader, 22);
  for (size_t size = 0; size < good.size(); ++size)
    EXPECT_NE(open_error(good.substr(0, size)), "accepted") << size;
  EXPECT_EQ(open_error(good), "accepted");
}

TEST_F(SafetensorsFiles, SurvivesAnyByteOfTheHeader) {
  const std::string good = kGoodHeader;
  for (size_t i = 0; i < good.size(); ++i) {
    for (const char byte : {'\0', '9', '"', '{', '[', '\xff', ','}) {
      std::string bad = good;
      bad[i] = byte;
      const Result<std::vector<TensorView>> tensors = parse_safetensors_header(bad, 22, "t");
      if (!tensors) continue;  // a name or a digit may change and still make sense: then all must lie inside
      for (const TensorView& t : *tensors)
        EXPECT_TRUE(t.begin >= 0 && t.begin <= t.end && t.end <= 22) << bad;
    }
  }
}

TEST_F(SafetensorsFiles, JoinsTheShardsOfAnIndex) {
  write("x.safetensors", file_of(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4));
  write("y.safetensors", file_of(R"({"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4));
  const auto open_with = [&](const char* map) {
    write("model.safetensors.index.json", std::string(R"({"weight_map":)") + map + "}");
    const Result<Checkpoint> checkpoint = Checkpoint::open(dir_);
    return checkpoint ? "accepted " + std::to_string(checkpoint->bytes()) : checkpoint.error().message;
  };
  EXPECT_EQ(open_with(R"({"a":"x.safetensors","b":"y.safetensors"})"), "accepted 8");
  EXPECT_TRUE(
      contains(open_with(R"({"a":"x.safetensors","c":"y.safetensors"})"), "tensor `b` is not in the index"));
  EXPECT_TRUE(contains(open_with(R"({"a":"x.safetensors","z":"x.safetensors"})"), "tensor `z` is missing"));
  EXPECT_EQ(open_with(R"({"a":"y.safetensors","b":"y.safetensors","c":"x.safetensors"})"),
            dir_ + "/x.safetensors: tensor `a` lies here; the index says that it lies in y.safetensors");
  EXPECT_EQ(open_with(R"({"a":"z.safetensors","b":"y.safetensors","c":"x.safetensors"})"),
            dir_ +
                "/x.safetensors: tensor `a` lies here; the index says that it lies in z.safetensors, which "
                "is not there");
  EXPECT_TRUE(
      contains(open_with(R"({"a":"../x.safetensors"})"), "the name of a file beside the index is wanted"));
  EXPECT_TRUE(contains(open_with(R"({"a":"no.safetensors"})"), "no.safetensors"));
  EXPECT_TRUE(contains(open_with(R"({"a":3})"), "tensor `a` lies in 3"));
  EXPECT_TRUE(contains(open_with("{}"), "`weight_map` is missing or empty"));
  write("y.safetensors", file_of(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4));
  EXPECT_TRUE(contains(open_with(R"({"a":"x.safetensors"})"), "accepted"));
}

TEST_F(SafetensorsFiles, SaysThatOnlySafetensorsIsRead) {
  write("pytorch_model.bin", "x");
  const Result<Checkpoint> checkpoint = Checkpoint::open(dir_);
  ASSERT_FALSE(checkpoint);
  EXPECT_TRUE(contains(checkpoint.error().message, "only safetensors is read"));
}

// ---- a whole model's tensors ----

ModelSpec tiny_spec() {
  return *parse_model_config(
      R"({"architectures": ["LlamaForCausalLM"], "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1,
    "num_attention_heads": 2, "vocab_size": 8, "max_position_embeddings": 16, "tie_word_embeddings": true})");
}

// A file with every tensor of the model, changed by `edit` first: (name -> {dtype, shape}).
using Tensors = std::map<std::string, std::pair<std::string, std::vector<int64_t>>>;
std::string model_file(const std::function<void(Tensors&)>& edit, size_t pad = 0) {
  Tensors tensors;
  for (const TensorSlot& slot : all_slots(tiny_spec())) tensors[slot.name] = {"F32", slot.shape};
  edit(tensors);
  json header;
  int64_t at = 0;
  for (const auto& [name, t] : tensors) {
    int64_t bytes = t.first == "F32" ? 4 : t.first == "I64" ? 8 : 2;
    for (const int64_t n : t.second) bytes *= n;
    header[name] = {{"dtype", t.first}, {"shape", t.second}, {"data_offsets", {at, at + bytes}}};
    at += bytes;
  }
  return file_of(header.dump() + std::string(pad, ' '), static_cast<size_t>(at));
}

TEST_F(SafetensorsFiles, ListsWhatAModelLacksBeforeReadingIt) {
  const auto source_error = [&](const std::function<void(Tensors&)>& edit) {
    write("model.safetensors", model_file(edit));
    const Result<std::unique_ptr<WeightSource>> source = open_checkpoint_source(dir_, tiny_spec());
    return source ? std::string("accepted") : source.error().message;
  };
  EXPECT_EQ(source_error([](Tensors&) {}), "accepted");
  EXPECT_TRUE(contains(source_error([](Tensors& t) { t.erase("model.layers.0.mlp.up_proj.weight"); }),
                       "tensor `model.layers.0.mlp.up_proj.weight` [6, 4] is missing"));
  EXPECT_TRUE(contains(source_error([](Tensors& t) { t["model.norm.weight"].second = {5}; }),
                       "tensor `model.norm.weight` has shape [5]; config.json wants [4]"));
  EXPECT_TRUE(contains(source_error([](Tensors& t) { t["model.norm.weight"].first = "I64"; }),
                       "has dtype I64; F32, BF16 or F16 is wanted"));
  EXPECT_TRUE(
      contains(source_error([](Tensors& t) { t["model.layers.0.self_attn.q_proj.bias"] = {"F32", {4}}; }),
               "tensor `model.layers.0.self_attn.q_proj.bias` has no place in a LlamaForCausalLM"));
  EXPECT_EQ(source_error([](Tensors& t) {
              t["lm_head.weight"] = {"F32", {8, 4}};  // the copy of a tied embedding
              t["model.layers.0.self_attn.rotary_emb.inv_freq"] = {"F32", {1}};
            }),
            "accepted");
  EXPECT_TRUE(contains(source_error([](Tensors& t) {
                         t.clear();
                         t["x"] = {"F32", {1}};
                       }),
                       "; and 7 more"));
}

TEST_F(SafetensorsFiles, ReadsTensorsThatAreNotAligned) {
  for (size_t pad = 0; pad < 8; ++pad) {
    write("model.safetensors", model_file([](Tensors&) {}, pad));
    Result<std::unique_ptr<WeightSource>> source = open_checkpoint_source(dir_, tiny_spec());
    ASSERT_TRUE(source) << source.error().message;
    const HostTensor t = (*source)->tensor(final_norm_slot(tiny_spec()));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(t.matrix.data) % 4, 0u);
    uint32_t bits = 0;
    std::memcpy(&bits, t.matrix.data, 4);
    EXPECT_EQ(bits, 0x01010101u);
  }
}

TEST(RandomWeights, AreTheSameForAnyNumberOfThreadsAndDifferBySeedAndTensor) {
  ModelSpec spec = tiny_spec();
  spec.hidden_size = 1024;
  spec.vocab_size = 1025;
  spec.checkpoint_dtype = DType::kBF16;
  const TensorSlot slot = embedding_slot(spec);
  const auto bytes = static_cast<size_t>(slot.rows() * slot.cols() * 2);
  const HostTensor one = make_random_source(spec, 5, 1)->tensor(slot),
                   three = make_random_source(spec, 5, 3)->tensor(slot);
  const HostTensor other = make_random_source(spec, 6, 1)->tensor(slot),
                   head = make_random_source(spec, 5, 1)->tensor(lm_head_slot(spec));
  EXPECT_EQ(std::memcmp(one.matrix.data, three.matrix.data, bytes), 0);
  EXPECT_NE(std::memcmp(one.matrix.data, other.matrix.data, bytes), 0);
  EXPECT_NE(std::memcmp(one.matrix.data, head.matrix.data, bytes), 0);
  double sum = 0, squares = 0;
  const auto n = static_cast<double>(slot.rows() * slot.cols());
  for (size_t i = 0; i < bytes / 2; ++i) {
    const double x = bf16_to_f32(static_cast<const uint16_t*>(one.matrix.data)[i]);
    sum += x;
    squares += x * x;
  }
  EXPECT_NEAR(sum / n, 0, 1e-4);
  EXPECT_NEAR(squares / n * 1024, 1, 0.01);  // variance 1 / cols
}

TEST(RandomWeights, OneSourceGivesEachTensorItsValuesWhateverItsMemoryHeld) {
  const ModelSpec spec = tiny_spec();
  const std::unique_ptr<WeightSource> source = make_random_source(spec, 5, 1);
  const auto bytes_of_slot = [&](const TensorSlot& slot) {
    return static_cast<size_t>(slot.rows() * slot.cols() * bytes_of(source->dtype_of(slot)));
  };
  std::vector<HostTensor> held;
  for (const TensorSlot& slot : all_slots(spec)) {
    HostTensor t = source->tensor(slot);
    const HostTensor fresh = make_random_source(spec, 5, 1)->tensor(slot);
    EXPECT_EQ(std::memcmp(t.matrix.data, fresh.matrix.data, bytes_of_slot(slot)), 0) << slot.name;
    for (const HostTensor& other : held) EXPECT_NE(t.matrix.data, other.matrix.data) << "still held";
    held.push_back(std::move(t));
    if (held.size() == 3) held.clear();
  }
}

TEST(RandomWeights, NamesABadSource) {
  for (const char* word : {"random:", "random:x", "random:-1", "random:1x", "Random", ""}) {
    const auto source = open_weight_source(word, "/no/such/model", tiny_spec(), 1);
    ASSERT_FALSE(source) << word;
    EXPECT_EQ(source.error().field, "weights");
  }
  EXPECT_TRUE(open_weight_source("random:18446744073709551615", "", tiny_spec(), 1));
  EXPECT_EQ(open_weight_source("checkpoint", "/no/such/model", tiny_spec(), 1).error().code, Code::kNotFound);
}

// One byte anywhere in the weights makes another model of it.
TEST_F(SafetensorsFiles, TheFingerprintIsOfEveryByte) {
  const int64_t bytes = 40000;
  const std::string header = R"({"w":{"dtype":"F32","shape":[100,100],"data_offsets":[0,40000]}})";
  const uint64_t header_bytes = header.size();
  std::string file(reinterpret_cast<const char*>(&header_bytes), sizeof header_bytes);
  file += header + std::string(bytes, 'w');
  write("config.json", "{}");
  const auto fingerprint = [&] {
    write("model.safetensors", file);
    const Result<uint64_t> made = model_fingerprint(dir_, "checkpoint");
    EXPECT_TRUE(made.has_value()) << made.error().message;
    return made.value();
  };
  const uint64_t first = fingerprint();
  EXPECT_EQ(fingerprint(), first);
  for (const int64_t at : {0, 1, 12345, 29999, 39999}) {
    const std::string whole = file;
    file[file.size() - bytes + at] = 'x';
    EXPECT_NE(fingerprint(), first) << at;
    file = whole;
  }
}

}  // namespace
}  // namespace quire
