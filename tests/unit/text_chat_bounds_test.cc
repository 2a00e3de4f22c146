// Chat templates of a hostile model: each ends with an error, soon, and takes neither the stack nor the memory of
// the process along. Rendered on a thread of 2 MiB, the least that a server's thread has.
#include <pthread.h>

#include <fmt/format.h>

#include <chrono>
#include <functional>

#include "src/text/chat_template.h"
#include "tests/unit/text_fixture.h"

namespace quire::test {
namespace {

void on_small_stack(const std::function<void()>& work) {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  ASSERT_EQ(pthread_attr_setstacksize(&attributes, 2 << 20), 0);
  pthread_t thread;
  const auto run = [](void* work) -> void* {
    (*static_cast<const std::function<void()>*>(work))();
    return nullptr;
  };
  ASSERT_EQ(pthread_create(&thread, &attributes, run, const_cast<std::function<void()>*>(&work)), 0);
  pthread_join(thread, nullptr);
  pthread_attr_destroy(&attributes);
}

std::string repeated(std::string_view part, int times) {
  std::string text;
  for (int i = 0; i < times; ++i) text += part;
  return text;
}

struct Outcome {
  Code code = Code::kOk;
  std::string text;  // or the error's message
};

Outcome outcome_of(std::string_view source) {
  Outcome outcome;
  on_small_stack([&] {
    const auto chat = ChatTemplate::from_source(source, "{}");
    const Result<std::string> text = chat ? (*chat)->render_json(R"({"messages": [{"role": "user"}]})", 0)
                                          : Result<std::string>(chat.error());
    outcome = text ? Outcome{.code = Code::kOk, .text = *text}
                   : Outcome{.code = text.error().code, .text = text.error().message};
  });
  return outcome;
}

void expect_refused(std::string_view source, std::string_view reason) {
  const auto start = std::chrono::steady_clock::now();
  const Outcome outcome = outcome_of(source);
  const std::string_view shown = source.substr(0, 200);
  EXPECT_NE(outcome.code, Code::kOk) << shown;
  EXPECT_NE(outcome.text.find(reason), std::string::npos) << shown << ": " << outcome.text;
  // The slowest takes a second on a machine of its own.
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(60)) << shown;
}

// A variable that is made anew from itself, as often as range allows.
std::string grown(std::string_view step, int times = 60, std::string_view use = "{{ ns.x | length }}") {
  return "{% set ns = namespace(x=[1]) %}{% for i in range(" + std::to_string(times) +
         ") %}{% set ns.x = " + std::string(step) + " %}{% endfor %}" + std::string(use);
}

constexpr char kParts[] = "makes a value of more than 1048576 parts";
constexpr char kDeep[] = "makes a value nested more than 192 deep";
constexpr char kSteps[] = "more than 10000000 steps (max_steps)";

TEST(HostileChatTemplate, CannotDoubleAValue) {
  for (const char* step : {"ns.x + ns.x", "[ns.x, ns.x]", "(ns.x, ns.x)", "{'a': ns.x, 'b': ns.x}",
                           "ns.x * 2", "ns.x | chain(ns.x)", "[ns.x, ns.x] | sum(start=[])",
                           "(ns.x + ns.x) | batch(1) | list", "[[ns.x, ns.x]][0]"})
    expect_refused(grown(step), kParts);
  for (const char* use :
       {"{{ ns.x }}", "{{ ns.x == ns.y }}", "{{ ns.x | tojson }}", "{{ ns.x in [ns.y] }}",
        "{{ ns.x | string }}", "{{ {ns.x: 1} }}", "{{ [ns.x, ns.x] | sort }}", "{{ ns.x ~ 'a' }}"})
    expect_refused(grown("[ns.x, ns.x] %}{% set ns.y = [ns.x, ns.x]", 60, use), kParts);
  expect_refused("{% set x = [1] %}" + repeated("{% set x = x + x %}", 60) + "{{ x }}", kParts);
  expect_refused("{% macro f(x) %}{{ f([x, x]) }}{% endmacro %}{{ f([1]) }}", "chat template");
  expect_refused("{{ [1]" + repeated("*1000", 20) + " == 1 }}", "chat template");
  expect_refused("{{ ([1] * 100000000) | length }}", kParts);
}

TEST(HostileChatTemplate, CannotNestAValueOrAnIterator) {
  for (const char* step : {"[ns.x]", "{'a': ns.x}", "(ns.x,)"}) {
    expect_refused(grown(step, 99999, "{{ ns.x }}"), kDeep);
    expect_refused(grown(step, 99999, ""), kDeep);
  }
  for (const char* step : {"ns.x[0:]", "ns.x * 1", "ns.x | map('int')", "[ns.x[0]][0:]"})
    EXPECT_EQ(outcome_of(grown(step, 9999, "{{ ns.x }}")).text, "[1]") << step;
  for (const char* step : {"ns", "[ns]", "{'a': ns}", "namespace(x=ns.x, y=ns)", "loop"})
    expect_refused(grown(step, 2), "a namespace cannot hold a namespace or a loop");
}

TEST(HostileChatTemplate, CannotTakeAllMemory) {
  expect_refused(grown("[ns.x] * 16 %}{% set ns.x = ns.x | join('aaaaaaaaaaaaaaaa')", 10), "chat template");
  expect_refused("{{ 'a' * 4000000000 }}", kSteps);
  expect_refused("{{ (range(100000) | list) | join('x' * 1000000) }}", kSteps);
  expect_refused("{{ ('x' * 1000000).join(range(100000) | list) }}", kSteps);
  for (const char* pair : {"('x' * 65, ':')", "(',', 'x' * 65)", "(',',)", "(1, 2)"})
    expect_refused(fmt::format("{{{{ [1, 2] | tojson(separators={}) }}}}", pair),
                   "separators must be two texts of up to 64 bytes each");
  for (const char* way : {"separators=('x' * 64, ':')", "indent=64"})
    expect_refused(fmt::format("{{{{ ([0] * 1000000) | tojson({}) }}}}", way),
                   "a value of more than 33554432 bytes cannot be written as JSON");
  expect_refused("{{ ('{0:60000}' * 100000).format(1) }}", "6000000000 bytes wide");
  expect_refused("{{ ('a\\n' * 2000000) | indent('x' * 1000000) }}", "indent: width");
  expect_refused("{{ ('a\\n' * 2000000) | indent(64) }}", "indent: it would add");
  expect_refused("{% for i in range(99999) %}{% set y %}{{ 'x' * 100000 }}{% endset %}{% endfor %}",
                 "puts out more than 16777216 bytes");
  expect_refused("{{ debug() }}", "debug");
}

// Each step here works on much.
TEST(HostileChatTemplate, PaysForWhatAStepWorksOn) {
  const std::string lists = "{% set s = range(99999) | list %}{% set t = range(99999) | list %}";
  const std::string texts = "{% set s = '\u00e9' * 9000000 %}{% set t = '\u00e9' * 9000000 %}";
  for (const char* use : {"s.count(4)", "s == t", "s | sort", "s in [t, t]", "s | unique | list"})
    expect_refused(lists + "{% for i in range(99999) %}{% set y = " + use + " %}{% endfor %}", kSteps);
  for (const char* use : {"s.count('x')", "s == t", "s[8999999]", "s[-1:]", "s | length", "'x' in s"})
    expect_refused(texts + "{% for i in range(99999) %}{% set y = " + use + " %}{% endfor %}", kSteps);
}

// The list of a group is lazy, and gone through up to a place: from its end all of it, for a slice too.
TEST(HostileChatTemplate, PaysForTheListOfAGroup) {
  for (const char* use : {"g.list[-1]", "g.list[149999]", "g.list[149999:]", "g[1][-1]"})
    expect_refused("{% for g in ([0] * 150000) | groupby('x') %}{% for i in range(99999) %}{% set y = " +
                       std::string(use) + " %}{% endfor %}{% endfor %}",
                   kSteps);
  EXPECT_EQ(
      outcome_of("{% for g in [{'x': 1}, {'x': 1}] | groupby('x') %}{{ g.list[-1].x }}{{ g.list | length }}"
                 "{% endfor %}")
          .text,
      "12");
}

// Integers beyond 64 bits all hash as the float next to them, lists and maps by their parts in a row: whoever looks a key up
// among such goes through all of them.
TEST(HostileChatTemplate, HasKeysThatTellThemselvesApart) {
  for (const char* made : {"{2**100: 1}", "{(1, 2): 1}", "{[1]: 1}", "{{'a': 1}: 1}"})
    expect_refused("{{ " + std::string(made) + " }}", "a key of a map is a");
  expect_refused(grown("{(ns.x, ns.x): 1}"), "a key of a map is a");
  EXPECT_EQ(
      outcome_of("{% set k = 'e' %}{{ {1: 'a', none: 'b', 1.5: 'c', 'd': 'd', k: 'f'} | length }}").text,
      "5");
}

// Whether a namespace holds anything is seen by copying all of its names.
TEST(HostileChatTemplate, SetsFewNames) {
  std::string set = "{% set ns = namespace() %}", named = "{{ namespace(";
  for (int i = 0; i < 65; ++i) {
    set += fmt::format("{{% if i %}}{{% set ns.a{} = 1 %}}{{% endif %}}", i);
    named += fmt::format("a{}=1, ", i);
  }
  expect_refused(set, "it sets 65 attributes of namespaces; 64 is the limit");
  expect_refused(named + ") }}", "a namespace of 65 names; 64 is the limit");
}

TEST(HostileChatTemplate, PaysForWhatSortingCompares) {
  for (const char* use : {"sort", "unique | list", "groupby('0')"})
    expect_refused("{% set s = [range(900) | list] * 1000 %}{% for i in range(99) %}{% set y = s | " +
                       std::string(use) + " %}{% endfor %}",
                   kSteps);
}

// Where the library looks at an argument, or copies what there is, again for every item.
TEST(HostileChatTemplate, PaysForWhatAFilterDoesForEachItem) {
  for (const char* use :
       {"('%(a)s' * 100000) | format({'a': 'x' * 1000000})", "('x' * 4000000) | trim('y' * 1000000)",
        "('x' * 4000000).strip('y' * 1000000)", "(['a'] * 400000) | map('replace', 'x' * 4000000, '')",
        "([{}] * 200000) | map('attr', range(99999) | list)", "('a' * 1000000) | map('batch', 1024)",
        "(['a'] * 500000) | min(attribute='0.' * 127 ~ '0')",
        "(['a'] * 500000) | map(attribute='0.' * 127 ~ '0')",
        "(['a'] * 400000) | select('in', 'x' * 4000000)"})
    expect_refused("{{ " + std::string(use) + " }}", kSteps);
  for (const char* filter :
       {"sort(attribute=", "unique(attribute=", "min(attribute=", "max(attribute=", "groupby(", "selectattr(",
        "rejectattr(", "map(attribute=", "sum(", "join(',', "})
    expect_refused("{{ ([{'a': 1}] * 300000) | " + std::string(filter) + "'0' * 4000000) }}",
                   "an attribute's name of 4000000 bytes");
  expect_refused("{{ range(1000) | list | sort(attribute='a,' * 100) }}", "sort: 101 attributes");
  expect_refused("{{ (['a'] * 400000) | sum(start='') }}", "texts cannot be summed");
  EXPECT_EQ(outcome_of("{{ ([[1]] * 400000) | sum(start=[]) | length }}").text, "400000");
}

// A list of characters, of lines or of empty lists takes 24 bytes or more for each.
TEST(HostileChatTemplate, AsksOfATextWhetherItIsIterableAtNoCost) {
  // A count of its characters takes half a millisecond each time, and ten minutes in all.
  expect_refused("{% set s = 'a' * 16000000 %}" +
                     repeated("{% for i in range(99999) %}{% if s is iterable %}{% endif %}{% endfor %}", 30),
                 kSteps);
}

TEST(HostileChatTemplate, MakesNoListOfMoreThanItsParts) {
  for (const char* use :
       {"[] | slice(19900000)", "[] | slice(19900000, 0)", "('a' * 33000000).split('')",
        "('a' * 33000000) | split('')", "('a ' * 9000000) | split", "('a ' * 9000000).split()",
        "('a\n' * 9000000) | lines", "('a\n' * 9000000).splitlines()", "('a' * 9000000) | list",
        "('a' * 9000000) | map('upper')", "('a' * 9000000) | batch(9)", "('a' * 9000000) | sort",
        "range(*('a' * 9000000))"})
    expect_refused("{{ " + std::string(use) + " }}", kParts);
  EXPECT_EQ(
      outcome_of("{{ 'a b'.split() }}{{ 'a,b' | split(',') }}{{ 'ab' | list }}{{ range(*[1, 3]) | list }}"
                 "{{ 'a\nb' | lines }}{{ 'a\nb'.splitlines() }}{{ [1, 2, 3] | slice(2) | list }}")
          .text,
      "['a', 'b']['a', 'b']['a', 'b'][1, 2]['a', 'b']['a', 'b'][[1, 2], [3]]");
}

// A filter that calls filters could call itself for each of its arguments, until the thread's stack ends.
TEST(HostileChatTemplate, MapsInFewMaps) {
  for (const char* count : {"9", "9000", "100000"})
    expect_refused("{{ 'a' | map(*(['map'] * " + std::string(count) + ")) }}",
                   " maps in one another; 8 is the limit");
  EXPECT_EQ(outcome_of("{{ [['a'], ['b', 'c']] | map('map', 'upper') }}").text, "[['A'], ['B', 'C']]");
}

// Without regard to case the library writes both texts anew in small letters for each comparison.
TEST(HostileChatTemplate, PaysForTheLongestTextOfAComparison) {
  for (const char* use : {"max", "min", "sort", "map('lower') | max"})
    expect_refused("{{ (['a'] * 150000 + ['m' * 16000000] + ['z'] * 150000) | " + std::string(use) + " }}",
                   kSteps);
  for (const char* use : {"max(attribute='a.0')", "min(attribute='a.0')", "sort(attribute='a.0')",
                          "groupby('a.0')", "groupby(attribute='a.0')"})
    expect_refused("{{ ([{'a': ['m' * 16000000]}] + [{'a': ['a']}] * 20000) | " + std::string(use) + " }}",
                   kSteps);
  const std::string map =
      "{% set ns = namespace(x={'k': 'm' * 16000000}) %}{% for i in range(3000) %}{% set ns.x = ns.x"
      " | chain({'k' ~ i: 'a'}) %}{% if i > 1 %}{{ ns.x | dictsort(by='value') | length }}";
  expect_refused(map + "{% endif %}{% endfor %}", kSteps);
  EXPECT_EQ(outcome_of("{{ ['b', 'A', 'c'] | sort }}{{ ['b', 'A'] | max }}{{ [{'a': ['B']}, {'a': ['a']}] | "
                       "sort(attribute='a.0') }}{{ {'b': 1, 'A': 2} | dictsort }}{{ [1, 'a'] | min }}")
                .text,
            "['A', 'b', 'c']b[{'a': ['a']}, {'a': ['B']}][('A', 2), ('b', 1)]1");
}

// Each of these took 15 to 35 us, or more, for a handful of steps.
TEST(HostileChatTemplate, PaysForDigitsAndDates) {
  const auto often = [](std::string_view use) {
    return "{% set x = 1.5e-300 %}{% for i in range(99999) %}{% for i in range(99999) %}{% set y = " +
           std::string(use) + " %}{% endfor %}{% endfor %}";
  };
  for (const char* use : {"x | round(1074)", "x | round(precision=1074)", "x | round(-1)",
                          "'%.1000f' | format(x)", "'{:.1000f}'.format(x)", "strftime_now('%T' * 500)"}) {
    const auto start = std::chrono::steady_clock::now();
    expect_refused(often(use), kSteps);
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20)) << use;
  }
  expect_refused("{{ strftime_now('%T' * 16000000) }}",
                 "strftime_now: a format of 32000000 bytes; 1024 is the limit");
  EXPECT_EQ(outcome_of("{{ 1.256 | round(2) }} {{ 1250 | round(-2) }} {{ '%.2f' | format(1.256) }} "
                       "{{ strftime_now('%Y') }}")
                .text,
            "1.26 1200 1.26 1970");
}

TEST(HostileChatTemplate, PadsWithinItsBytes) {
  for (const char* source :
       {"{{ '{:>100000000000}'.format(1) }}", "{{ '{:.9223372036854775807f}'.format(1.5) }}",
        "{{ '{:}>1000000000}'.format(1) }}", "{{ '{:{>1000000000,}'.format(1) }}",
        "{{ '{0:0>99999999.99999999f}'.format(1) }}", "{{ '{:é^33333333s}'.format('a') }}",
        "{{ ('{:>9999999}' * 9).format(1, 1, 1, 1, 1, 1, 1, 1, 1) }}"})
    expect_refused(source, " bytes wide");
  // A number that is no width costs nothing, and widths are what they are.
  const Outcome padded =
      outcome_of("{{ '20240101 1000000000000 {:>8}|{:<6.2f}|{:_^5}'.format('a', 1.5, 2) }}");
  EXPECT_EQ(padded.text, "20240101 1000000000000        a|1.50  |__2__");
  expect_refused("{% for i in range(99999) %}{% set x = '{:.65534f}'.format(1e-300) %}{% endfor %}", "steps");
}

TEST(HostileChatTemplate, EscapesAndWritesWithinItsBytes) {
  expect_refused("{{ ('\x01' * 32000000) | tojson }}", "tojson: a value of more than 33554432 bytes");
  expect_refused("{{ ('<' * 32000000) | e }}", "escapes a text to more than 33554432 bytes");
  expect_refused("{% autoescape true %}{% set y %}{{ '<' * 16000000 }}{% endset %}{% endautoescape %}",
                 "puts out more than 16777216 bytes");
  expect_refused(
      "{% autoescape true %}{% for i in range(9) %}{% set y %}{{ ['a' * 8000000] }}{% endset %}{% endfor %}"
      "{% endautoescape %}",
      "puts out more than 16777216 bytes");
  EXPECT_EQ(
      outcome_of(
          "{{ '<a>' | e }}{{ ['<'] | e }}{{ '\x01\u20ac' | tojson(ensure_ascii=true) }}{% autoescape true %}"
          "{{ '<' }}{{ ['<'] }}{% endautoescape %}{{ 'a\nb\n' | indent(2) }}|")
          .text,
      "&lt;a&gt;[&#x27;&lt;&#x27;]\"\\u0001\\u20ac\"&lt;[&#x27;&lt;&#x27;]a\n  b\n|");
}

// loop.changed() keeps what it was given: the loop itself, or what holds it, would be there for good.
TEST(HostileChatTemplate, LeavesNothingBehind) {
  for (const char* kept : {"loop", "[loop]", "{'a': [loop]}", "*[loop]", "a=loop"})
    expect_refused(
        "{% for i in [1, 2] %}{{ loop.changed('x' * 30000000, " + std::string(kept) + ") }}{% endfor %}",
        "cannot hold a namespace or a loop");
  EXPECT_EQ(outcome_of("{% for i in [1, 1, 2] %}{{ loop.changed(i, [i]) }} {% endfor %}").text,
            "True False True ");
}

TEST(HostileChatTemplate, ChainsAreMadeAtOnce) {
  const std::string maps =
      "{% set ns = namespace(x={'b': 1}) %}{% for i in range(20000) %}{% set ns.x = ns.x | chain({'a': i}) %}"
      "{% endfor %}{{ ns.x }}";
  EXPECT_EQ(outcome_of(maps).text, "{'a': 19999, 'b': 1}");
  const std::string lists =
      "{% set x = [] | chain(*([[1]] * 400000)) %}{% for i in range(99999) %}{% set y = x[399999] %}{% "
      "endfor %}";
  EXPECT_EQ(outcome_of(lists + "{{ x | length }}").text, "400000");
  expect_refused("{% set x = range(99999) | list %}{{ [] | chain(" + repeated("x, ", 30) + "x) }}", kParts);
}

TEST(HostileChatTemplate, CannotMakeTheParserCallItselfWithoutEnd) {
  const auto tag = [](std::string_view before, std::string_view link, std::string_view after, int links) {
    return "{{ " + std::string(before) + repeated(link, links) + std::string(after) + " }}";
  };
  for (const int links : {1000, 5000, 20000}) {  // of at most 12 bytes: the source is within its bound
    for (const char* prefix : {"-", "not ", "1+", "1 if 0 else "})
      expect_refused(tag("", prefix, "1", links), "a tag of more than 1000 tokens");
    for (const char* suffix :
         {"~1", " and 1", "|string", ".x", "()", " is defined", "[0]", "[0:]", " < 1", "*1"})
      expect_refused(tag("messages", suffix, "", links), "a tag of more than 1000 tokens");
    expect_refused("{% if 0 %}" + repeated("{% elif 0 %}", links) + "{% endif %}", "more than 200 \"elif\"");
  }
  expect_refused(std::string(512 * 1024 + 1, 'a'), "524289 bytes");
}

// The longest that are let through.
TEST(HostileChatTemplate, KeepsToItsStackUpToTheBounds) {
  EXPECT_EQ(outcome_of("{{ " + repeated("not ", 990) + "1 }}").text, "True");
  EXPECT_EQ(outcome_of("{{ " + repeated("-", 990) + "1 }}").text, "1");
  EXPECT_EQ(outcome_of("{{ 1" + repeated("+1", 490) + " }}").text, "491");
  EXPECT_EQ(outcome_of("{{ 1" + repeated("~1", 490) + " }}").text, std::string(491, '1'));
  EXPECT_EQ(outcome_of("{{ " + repeated("1 if 0 else ", 240) + "2 }}").text, "2");
  EXPECT_EQ(outcome_of("{{ 1" + repeated("|string", 490) + " }}").text, "1");
  EXPECT_EQ(outcome_of("{{ 'a'" + repeated("[0:]", 240) + " }}").text, "a");
  EXPECT_EQ(outcome_of("{% if 0 %}" + repeated("{% elif 0 %}", 199) + "{% else %}x{% endif %}").text, "x");
  EXPECT_NE(outcome_of("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").code, Code::kOk);
  EXPECT_NE(outcome_of("{% for x in [[1]] recursive %}{{ loop([x]) }}{% endfor %}").code, Code::kOk);
}

// To look up one message costs the same among any number.
TEST(HostileChatTemplate, LetsALongChatPass) {
  const auto chat = ChatTemplate::from_source(
      "{% for m in messages %}{% if messages[loop.index0 - 1].role == m.role %}{{ messages | length }}{% "
      "endif %}"
      "{% endfor %}{{ messages[-1]['role'] }} {{ messages[999999] is defined }} {{ 'é-' [1] }}",
      "{}");
  ASSERT_TRUE(chat.has_value()) << chat.error().message;
  const std::vector<ChatMessage> messages(20'001, {.role = "user", .content = "x"});
  const Result<std::string> text = (*chat)->render(messages, true);
  ASSERT_TRUE(text.has_value()) << text.error().message;
  EXPECT_TRUE(text->ends_with("20001user False -")) << text->substr(text->size() - 40);
}

// What templates do to values stays as it is, lazy or not.
TEST(HostileChatTemplate, ChecksDoNotShow) {
  EXPECT_EQ(
      outcome_of("{{ [1] + [2, [3][0:]] }} {{ [1] * 2 }} {{ {'a': 1}.items() | list }} {{ (1, 'b') }}").text,
      "[1, 2, [3]] [1, 1] [('a', 1)] (1, 'b')");
  EXPECT_EQ(outcome_of("{{ nothing }}{{ nothing is defined }} {{ nothing | default('d') }} {{ none }}").text,
            "False d None");
  EXPECT_EQ(outcome_of("{% set ns = namespace(a=1) %}{% set ns.b = ns.a + 1 %}{{ ns.b }}{% for k, v in "
                       "{'x': 1}.items() %} {{ k }}={{ v }}{% endfor %}")
                .text,
            "2 x=1");
  EXPECT_EQ(outcome_of("{% for g in [{'a': 1, 'b': 'x'}, {'a': 1, 'b': 'y'}] | groupby('a') %}{{ g.grouper }}"
                       "{% for i in g.list %}{{ i.b }}{% endfor %}{% for i in g[1] %}{{ i.b }}{% endfor %}"
                       "{% endfor %}")
                .text,
            "1xyxy");
  EXPECT_EQ(
      outcome_of("{% for g in [{'a': 1}] | groupby('a') %}{{ {'l': g.list, 'k': 2} }}{% endfor %}").text,
      "{'l': [{'a': 1}], 'k': 2}");
  EXPECT_EQ(outcome_of("{{ [[1], [2]] | sum(start=[]) }} {{ [{'t': [1]}, {'t': [2]}] | sum('t', []) }} "
                       "{{ [1, 2] | sum }} {{ [{'n': 1}] | sum(attribute='n', start=2) }}")
                .text,
            "[1, 2] [1, 2] 3 3");
  EXPECT_EQ(outcome_of("{{ '%s-%(k)s' | format({'k': 1}) }} {{ 'xax' | trim('x') }}{{ 'yay'.strip('y') }} "
                       "{{ ['b', 'a'] | sort | join('+') }} {{ [1, 2] | select('in', [2]) | list }}")
                .text,
            "{'k': 1}-1 aa a+b [2]");
}

}  // namespace
}  // namespace quire::test
