// SPDX-License-Identifier: Apache-2.0
// carousel stream: teacher-forced reading of a text of any length.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "answers/run_summary.h"
#include "answers/token_stream.h"
#include "base/clock.h"
#include "carousel/error.h"
#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/json_lines.h"
#include "cli/numbers.h"
#include "cli/progress.h"
#include "cli/recall_notice.h"
#include "cli/segment_meter.h"
#include "measure/process_memory.h"

namespace carousel {
namespace {

using nlohmann::ordered_json;

// Where the figures go: rows of a table, lines of JSON, a line of progress.
class StreamReport {
 public:
  StreamReport(const StreamFlags& flags, Console* console)
      : console_(console), table_(flags.json != "-"), progress_(&console->err) {
    if (!flags.json.empty()) json_.emplace(flags.json, console->out.fd());
  }

  void Begin(const SingleSequenceEngine& engine);
  void Step(const SegmentMeter& meter, const SingleSequenceEngine& engine);
  void Row(const Segment& segment, const SingleSequenceEngine& engine);
  void Summary(const Segment& total, std::int64_t replaced, const SingleSequenceEngine& engine,
               std::string_view finish_reason);

 private:
  Console* console_;
  bool table_;
  std::optional<JsonLines> json_;
  Progress progress_;
  RecallNotice recall_notice_;
};

void StreamReport::Begin(const SingleSequenceEngine& engine) {
  if (!table_) return;
  const SequenceMetrics metrics = engine.metrics();
  console_->out.Write(fmt::format("{}, rotation {}, positions {}\n", engine.model().spec().name,
                                  Name(metrics.rotation), Name(metrics.positions)));
  console_->out.Write(fmt::format("{:>12} {:>8} {:>10} {:>8} {:>9} {:>12} {:>9}\n", "tokens", "nll",
                                  "ppl", "tok/s", "resident", "evicted", "memory"));
}

void StreamReport::Step(const SegmentMeter& meter, const SingleSequenceEngine& engine) {
  if (const std::string notice = recall_notice_.Once(engine); !notice.empty()) {
    progress_.Hide();
    console_->err.TryWrite(notice);
  }
  if (!progress_.IsDue()) return;
  const SequenceMetrics metrics = engine.metrics();
  const Segment segment = meter.unfinished().value_or(meter.total());
  progress_.Show(
      fmt::format("{} tokens | nll {:.3f} ppl {:.2f} | {:.0f} tok/s | {} resident, {} evicted | {}",
                  Grouped(meter.total().tokens()), segment.nll(), segment.perplexity(),
                  segment.tokens_per_second(), Grouped(metrics.resident_tokens),
                  Grouped(metrics.evicted_tokens), Megabytes(ReadProcessMemory().rss_bytes)));
}

void StreamReport::Row(const Segment& segment, const SingleSequenceEngine& engine) {
  const SequenceMetrics metrics = engine.metrics();
  const std::int64_t rss_bytes = ReadProcessMemory().rss_bytes;
  progress_.Hide();
  if (table_) {
    console_->out.Write(fmt::format(
        "{:>12} {:>8.4f} {:>10.2f} {:>8.1f} {:>9} {:>12} {:>9}\n", Grouped(segment.tokens_end),
        segment.nll(), segment.perplexity(), segment.tokens_per_second(),
        Grouped(metrics.resident_tokens), Grouped(metrics.evicted_tokens), Megabytes(rss_bytes)));
  }
  if (!json_) return;
  json_->Write(ordered_json{{"type", "segment"},
                            {"tokens_begin", segment.tokens_begin},
                            {"tokens_end", segment.tokens_end},
                            {"predicted_tokens", segment.predicted_tokens},
                            {"nll", segment.nll()},
                            {"ppl", segment.perplexity()},
                            {"tokens_per_s", segment.tokens_per_second()},
                            {"resident_tokens", metrics.resident_tokens},
                            {"evicted_tokens", metrics.evicted_tokens},
                            {"rss_bytes", rss_bytes}});
}

// What key rotation does to keys that are not exact.
std::string RoundingOf(const SequenceMetrics& metrics) {
  if (metrics.requantisation_error == 0.0) return "";
  return fmt::format(" (rounding keys by {:.2g} % at each eviction)",
                     100.0 * metrics.requantisation_error);
}

// What was in the text that is no text.
std::string ReplacedIn(std::int64_t replaced) {
  if (replaced == 0) return "";
  return fmt::format("; {} {} of bytes that are no UTF-8 replaced", Grouped(replaced),
                     replaced == 1 ? "sequence" : "sequences");
}

void StreamReport::Summary(const Segment& total, std::int64_t replaced,
                           const SingleSequenceEngine& engine, std::string_view finish_reason) {
  const SequenceMetrics metrics = engine.metrics();
  progress_.Hide();
  if (table_) {
    console_->out.Write(fmt::format(
        "{} tokens in {:.1f} s: nll {:.4f}, perplexity {:.2f}, {:.1f} tok/s; at most {} tokens "
        "resident "
        "({} of cache), {} forgotten in {} evictions; rotation {}{}, positions {}; memory {}, at "
        "most {}{}\n",
        Grouped(total.tokens()), total.seconds, total.nll(), total.perplexity(),
        total.tokens_per_second(), Grouped(metrics.max_resident_tokens),
        Megabytes(metrics.cache_bytes), Grouped(metrics.evicted_tokens), Grouped(metrics.evictions),
        Name(metrics.rotation), RoundingOf(metrics), Name(metrics.positions),
        Megabytes(ReadProcessMemory().rss_bytes), Megabytes(ReadProcessMemory().peak_rss_bytes),
        ReplacedIn(replaced)));
  }
  if (!json_) return;
  ordered_json summary{{"type", "summary"},
                       {"tokens", total.tokens()},
                       {"predicted_tokens", total.predicted_tokens},
                       {"nll", total.nll()},
                       {"ppl", total.perplexity()},
                       {"tokens_per_s", total.tokens_per_second()},
                       {"seconds", total.seconds},
                       {"replaced_sequences", replaced},
                       {"finish_reason", finish_reason}};
  AddEngineFigures(engine, &summary);
  json_->Write(summary);
  json_->Close();
}

// Feeds an engine whole chunks, so that the result does not depend on how the text came in.
class StreamReader {
 public:
  StreamReader(SingleSequenceEngine* engine, const Interrupt& interrupt, const StreamFlags& flags,
               StreamReport* report)
      : engine_(engine),
        interrupt_(interrupt),
        max_tokens_(flags.max_tokens),
        meter_(flags.segment),
        report_(report) {}

  // Takes the next tokens of the text, and reads all whole chunks of what is there.
  void Add(std::vector<TokenId> tokens);
  // Reads what is left, unless interrupted, and reports the segment that has begun.
  void Finish();
  // The same after an error, as far as it allows.
  void FinishAfterError();

  bool is_full() const { return max_tokens_ > 0 && taken_ >= max_tokens_; }
  const SegmentMeter& meter() const { return meter_; }

 private:
  void Read(std::size_t count);

  SingleSequenceEngine* engine_;
  const Interrupt& interrupt_;
  std::int64_t max_tokens_;
  std::int64_t taken_ = 0;
  std::vector<TokenId> waiting_;
  SegmentMeter meter_;
  StreamReport* report_;
};

void StreamReader::Add(std::vector<TokenId> tokens) {
  if (max_tokens_ > 0 && std::cmp_greater(tokens.size(), max_tokens_ - taken_))
    tokens.resize(static_cast<std::size_t>(max_tokens_ - taken_));
  taken_ += static_cast<std::int64_t>(tokens.size());
  waiting_.insert(waiting_.end(), tokens.begin(), tokens.end());
  const auto chunk = static_cast<std::size_t>(engine_->config().chunk_size);
  Read(waiting_.size() / chunk * chunk);
}

void StreamReader::Finish() {
  if (!interrupt_.raised()) Read(waiting_.size());
  if (const std::optional<Segment> rest = meter_.unfinished()) report_->Row(*rest, *engine_);
}

void StreamReader::FinishAfterError() {
  // A request that failed half-way leaves the engine unable to read on.
  if (!engine_->HasWork() && !waiting_.empty()) return Finish();
  if (const std::optional<Segment> rest = meter_.unfinished()) report_->Row(*rest, *engine_);
}

// Only the time of reading counts: how fast the text comes in says nothing about the system.
void StreamReader::Read(std::size_t count) {
  if (count == 0) return;
  const auto end = waiting_.begin() + static_cast<std::ptrdiff_t>(count);
  auto begin = Clock::now();
  engine_->Submit({.prompt = {waiting_.begin(), end}, .score_prompt = true});
  waiting_.erase(waiting_.begin(), end);
  while (engine_->HasWork()) {
    // A signal between the last step and Submit has cancelled nothing.
    if (interrupt_.raised()) engine_->Cancel();
    const StepResult step = engine_->Step();
    const auto now = Clock::now();
    const double seconds = SecondsBetween(std::exchange(begin, now), now);
    for (const Segment& segment :
         meter_.AddStep(step.tokens_processed, step.negative_log_likelihood, seconds))
      report_->Row(segment, *engine_);
    report_->Step(meter_, *engine_);
  }
}

void ReadAll(TokenStream* text, StreamReader* reader, const Interrupt& interrupt) {
  while (!reader->is_full() && !interrupt.raised()) {
    std::optional<std::vector<TokenId>> tokens = text->Next();
    if (!tokens) break;
    reader->Add(*std::move(tokens));
  }
  reader->Finish();
}

}  // namespace

int RunStream(const StreamFlags& flags, Backend* backend, Console* console) {
  StreamReport report(flags, console);
  LoadedEngine loaded;  // outlives who watches it
  Interrupt interrupt;
  PeekedSource source(OpenByteSource(flags.text, interrupt.wake_fd()));
  loaded = Load(backend, flags.model, flags.config, &console->err);
  SingleSequenceEngine* const engine = loaded.engine.get();
  interrupt.Watch(engine);
  report.Begin(*engine);

  StreamReader reader(engine, interrupt, flags, &report);
  TokenStream text(source, *loaded.tokenizer);
  const Segment& total = reader.meter().total();
  try {
    ReadAll(&text, &reader, interrupt);
  } catch (...) {
    // What was read is reported as far as it can be; the first error is the one to tell.
    const auto attempt = [](const auto& report_part) {
      try {
        report_part();
      } catch (const std::exception&) {
        return;
      }
    };
    attempt([&] { reader.FinishAfterError(); });
    if (total.tokens() > 0)
      attempt([&] { report.Summary(total, text.replaced(), *engine, "error"); });
    throw;
  }
  if (total.predicted_tokens == 0 && !interrupt.raised())
    throw Error(ErrorCode::kInvalidArgument, "text",
                "has fewer than two tokens, so there is nothing to predict; give more");
  report.Summary(total, text.replaced(), *engine,
                 interrupt.raised() ? "cancelled"
                 : reader.is_full() ? "max_tokens"
                                    : "end");
  return interrupt.raised() ? interrupt.exit_status() : 0;
}

}  // namespace carousel
