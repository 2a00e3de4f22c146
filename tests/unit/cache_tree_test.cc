// Method: trees built by hand, and random trees against brute force over all token strings put in.
#include <gtest/gtest.h>

#include <algorithm>

#include "src/base/random.h"
#include "src/cache/hash.h"
#include "src/cache/namespaces.h"
#include "src/cache/prefix_tree.h"

namespace quire {
namespace {

constexpr NamespaceId kA{1}, kB{2};

std::vector<TokenId> iota(int32_t count, TokenId first) {
  std::vector<TokenId> tokens(count);
  for (int32_t i = 0; i < count; ++i) tokens[i] = first + i;
  return tokens;
}

class TreeTest : public testing::Test {
 protected:
  TreeTest() : tree(64, 8) {
    tree.add_root(kA);
    tree.add_root(kB);
  }
  int32_t match(NamespaceId ns, const std::vector<TokenId>& tokens) {
    EXPECT_EQ(tree.audit(), std::nullopt);
    return tree.match(*tree.root(ns), tokens, path);
  }
  PrefixTree tree;
  std::vector<BlockId> path;
};

TEST_F(TreeTest, AHitIsExactToTheTokenInsideABlock) {
  const std::vector<TokenId> tokens = iota(20, 100);
  const std::span<const TokenId> all(tokens);
  tree.insert(*tree.root(kA), BlockId{5}, all.first(8));
  tree.insert(node_of(BlockId{5}), BlockId{3}, all.subspan(8, 8));
  tree.insert(node_of(BlockId{3}), BlockId{9}, all.subspan(16, 4));
  for (int32_t n = 0; n <= 20; ++n) {
    EXPECT_EQ(match(kA, std::vector<TokenId>(tokens.begin(), tokens.begin() + n)), n);
    EXPECT_EQ(path.size(), static_cast<size_t>((n + 7) / 8));
  }
  for (int32_t n = 0; n < 20; ++n) {
    std::vector<TokenId> other = tokens;
    other[n] = 7;
    EXPECT_EQ(match(kA, other), n);
  }
  EXPECT_EQ(match(kA, iota(30, 100)), 20);
  EXPECT_EQ(path, (std::vector<BlockId>{BlockId{5}, BlockId{3}, BlockId{9}}));
}

TEST_F(TreeTest, AnotherNamespaceSharesNothing) {
  tree.insert(*tree.root(kA), BlockId{5}, iota(8, 0));
  EXPECT_EQ(match(kB, iota(8, 0)), 0);
  tree.insert(*tree.root(kB), BlockId{6}, iota(8, 0));
  EXPECT_EQ(match(kB, iota(8, 0)), 8);
  EXPECT_EQ(path[0], BlockId{6});
  EXPECT_EQ(match(kA, iota(8, 0)), 8);
  EXPECT_EQ(path[0], BlockId{5});
}

// A pair of tokens that equals mix()'s constant makes the hash forget the pair before it in its lane. No
// vocabulary has such ids; they stand for any collision.
std::vector<TokenId> colliding(TokenId first) {
  constexpr uint64_t kForget = 0xE7037ED1A0B428DBull;
  std::vector<TokenId> tokens = iota(16, 50);
  tokens[0] = first;
  tokens[8] = static_cast<TokenId>(static_cast<uint32_t>(kForget));
  tokens[9] = static_cast<TokenId>(static_cast<uint32_t>(kForget >> 32));
  return tokens;
}

TEST(PrefixTree, TokensDecideWhereHashesCollide) {
  const std::vector<TokenId> a = colliding(1), b = colliding(2), next = iota(16, 900);
  ASSERT_EQ(hash_tokens(a), hash_tokens(b));
  PrefixTree tree(8, 16);
  tree.add_root(kA);
  std::vector<BlockId> path;
  tree.insert(*tree.root(kA), BlockId{0}, a);
  EXPECT_EQ(tree.match(*tree.root(kA), b, path), 0);

  // Under colliding parents the same tokens are different blocks.
  tree.insert(node_of(BlockId{0}), BlockId{1}, next);
  tree.insert(*tree.root(kA), BlockId{2}, b);
  std::vector<TokenId> both = b;
  both.insert(both.end(), next.begin(), next.end());
  EXPECT_EQ(tree.match(*tree.root(kA), both, path), 16);
  tree.insert(node_of(BlockId{2}), BlockId{3}, next);
  EXPECT_EQ(tree.match(*tree.root(kA), both, path), 32);
  EXPECT_EQ(path, (std::vector<BlockId>{BlockId{2}, BlockId{3}}));
  EXPECT_EQ(tree.audit(), std::nullopt);
  tree.erase(BlockId{1});
  tree.erase(BlockId{0});
  EXPECT_EQ(tree.match(*tree.root(kA), both, path), 32);
  EXPECT_EQ(tree.audit(), std::nullopt);
}

TEST_F(TreeTest, ARootIsUsedAgainAndEmpty) {
  tree.insert(*tree.root(kA), BlockId{5}, iota(8, 0));
  tree.erase(BlockId{5});
  tree.remove_root(kA);
  EXPECT_FALSE(tree.root(kA).has_value());
  tree.add_root(NamespaceId{77});
  EXPECT_EQ(match(NamespaceId{77}, iota(8, 0)), 0);
  EXPECT_EQ(tree.namespace_of(*tree.root(NamespaceId{77})), NamespaceId{77});
}

// Tokens from {0, 1, 2}, so that siblings share starts of every length.
std::vector<TokenId> random_tokens(Random& random, int32_t count) {
  std::vector<TokenId> tokens(count);
  for (TokenId& token : tokens) token = static_cast<TokenId>(random.below(3));
  return tokens;
}

TEST(PrefixTree, NearestChildIsTheBruteForceOne) {
  Random random(7);
  PrefixTree tree(400, 8);
  tree.add_root(kA);
  const TreeNode root = *tree.root(kA);
  std::vector<BlockId> inside, outside;
  for (int32_t i = 0; i < 400; ++i) outside.push_back(BlockId{i});
  for (int step = 0; step < 4000; ++step) {
    const std::vector<TokenId> tokens = random_tokens(random, static_cast<int32_t>(random.between(1, 8)));
    int32_t longest = 0;
    for (const BlockId block : inside) {
      const auto other = tree.tokens(block);
      const auto end = std::ranges::mismatch(other, tokens).in1;
      longest = std::max(longest, static_cast<int32_t>(end - other.begin()));
    }
    const PrefixTree::Nearest nearest = tree.nearest(root, tokens);
    ASSERT_EQ(nearest.shared, longest) << "step " << step;
    const bool covered = longest == static_cast<int32_t>(tokens.size());
    const bool covers = nearest.block != kNoBlock && longest == tree.num_tokens(nearest.block);
    if (!covered && !covers && !outside.empty()) {
      tree.insert(root, outside.back(), tokens);
      inside.push_back(outside.back());
      outside.pop_back();
    } else if (!inside.empty() && random.chance(0.3)) {
      std::swap(inside[random.below(inside.size())], inside.back());
      tree.erase(inside.back());
      outside.push_back(inside.back());
      inside.pop_back();
    }
    ASSERT_EQ(tree.audit(), std::nullopt) << "step " << step;
  }
}

TEST(Namespaces, FieldsDoNotRunIntoEachOther) {
  EXPECT_NE(encode({.model = "ab", .lora = "c"}), encode({.model = "a", .lora = "bc"}));
  EXPECT_NE(encode({.salt = "x"}), encode({.policy = "x"}));
  EXPECT_NE(encode({.model = "1:a"}), encode({.model = "1", .lora = "a"}));
}

TEST(Namespaces, CollidingKeysGetDifferentIds) {
  Namespaces names([](std::string_view) { return uint64_t{42}; });
  const NamespaceId a = names.open({.salt = "a"}), b = names.open({.salt = "b"});
  EXPECT_NE(a, b);
  EXPECT_EQ(names.open({.salt = "a"}), a);
  EXPECT_EQ(names.open({.salt = "b"}), b);
}

TEST(Namespaces, AKeyIsForgottenOnlyWithoutUsers) {
  Namespaces names;
  const NamespaceId id = names.open({.salt = "a"});
  names.open({.salt = "a"});
  EXPECT_FALSE(names.close(id));
  EXPECT_TRUE(names.in_use(id));
  EXPECT_TRUE(names.close(id));
  names.forget(id);
  EXPECT_EQ(names.size(), 0);
}

}  // namespace
}  // namespace quire
