// SPDX-License-Identifier: Apache-2.0
#include "carousel/request.h"

namespace carousel {

std::string_view Name(FinishReason value) {
  switch (value) {
    case FinishReason::kNone:
      return "";
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kExpired:
      return "expired";
  }
  return "";
}

}  // namespace carousel
