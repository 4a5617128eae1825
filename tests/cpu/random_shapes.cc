// Compares convolutions, norms and their gradients with float64's, by all ways of computing them
// that the compiler's flags leave, over random shapes; on 1 thread and on others, whose bits must be
// the same.
//
//   random_shapes SHAPES SEED
//
// Says what differs, and at last by what it computed.

#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <queue>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "norm.h"
#include "tile_convolution.h"

namespace crest {
namespace {

class Pool {
 public:
  explicit Pool(int64_t count) : threads_{count, [this](auto work) { add(std::move(work)); }} {
    for (int64_t i = 1; i < count; ++i) helpers_.emplace_back([this] { help(); });
  }
  ~Pool() {
    for (size_t i = 0; i < helpers_.size(); ++i) add({});
    for (std::thread& helper : helpers_) helper.join();
  }
  const Threads& threads() const { return threads_; }

 private:
  void add(std::function<void()> work) {
    std::lock_guard lock(mutex_);
    works_.push(std::move(work));
    added_.notify_one();
  }
  void help() {
    for (;;) {
      std::unique_lock lock(mutex_);
      added_.wait(lock, [this] { return !works_.empty(); });
      const std::function<void()> work = std::move(works_.front());
      works_.pop();
      lock.unlock();
      if (!work) return;
      work();
    }
  }

  std::mutex mutex_;
  std::condition_variable added_;
  std::queue<std::function<void()>> works_;
  std::vector<std::thread> helpers_;
  Threads threads_;
};

using Random = std::mt19937_64;

int64_t between(Random& random, int64_t least, int64_t most) {
  return std::uniform_int_distribution<int64_t>(least, most)(random);
}

// A size between 1 and `most`, of which small ones are as likely as large ones.
int64_t size(Random& random, int64_t most) {
  return std::lround(std::exp(std::uniform_real_distribution<>(0, std::log(most))(random)));
}

int64_t channels(Random& random) {
  static const int64_t chosen[] = {1, 3, 8, 15, 16, 17, 31, 32, 33, 40, 64};
  return between(random, 0, 1) ? chosen[between(random, 0, std::size(chosen) - 1)] : size(random, 70);
}

int64_t products(const Shape& s) { return s.batch * s.out_height * s.out_width * s.kernel_size(); }

Shape random_shape(Random& random) {
  for (;;) {
    Shape s{.batch = between(random, 1, 20), .height = size(random, 24), .width = size(random, 40),
            .in = channels(random), .out = channels(random)};
    const bool usual = between(random, 0, 2) == 0;  // as a network has them
    s.kernel_height = usual ? 3 : between(random, 1, 5);
    s.kernel_width = usual ? 3 : between(random, 1, 5);
    s.stride_y = usual ? 1 : between(random, 1, 3);
    s.stride_x = between(random, 0, 1) ? s.stride_y : between(random, 1, 3);
    s.before_y = between(random, 0, s.kernel_height - 1);
    s.before_x = between(random, 0, s.kernel_width - 1);
    // Less than nothing is padded where windows leave the last pixels out.
    const int64_t below = between(random, -1, s.kernel_height - 1);
    const int64_t right = between(random, -1, s.kernel_width - 1);
    const int64_t down = s.before_y + s.height + below - s.kernel_height;
    const int64_t along = s.before_x + s.width + right - s.kernel_width;
    s.out_height = down / s.stride_y + 1;
    s.out_width = along / s.stride_x + 1;
    if (down >= 0 && along >= 0 && products(s) < 1'000'000) return s;
  }
}

// More images than tiles sum at once; more channels than Winograd's patches have; wide windows.
const Shape kLarge[] = {
    {.batch = 17, .height = 16, .width = 32, .in = 1, .kernel_height = 1, .kernel_width = 1,
     .out_height = 16, .out_width = 32, .out = 130, .stride_y = 1, .stride_x = 1},
    {.batch = 1, .height = 9, .width = 14, .in = 70, .kernel_height = 3, .kernel_width = 3,
     .out_height = 9, .out_width = 14, .out = 97, .stride_y = 1, .stride_x = 1, .before_y = 1,
     .before_x = 1},
    {.batch = 1, .height = 6, .width = 40, .in = 16, .kernel_height = 5, .kernel_width = 5,
     .out_height = 6, .out_width = 40, .out = 3, .stride_y = 1, .stride_x = 1, .before_y = 2,
     .before_x = 2},
};

double value(float number) { return number; }

double value(bf16 number) {
  const uint32_t word = uint32_t{number.bits} << 16;
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}

void set(float& number, float to) { number = to; }

void set(bf16& number, float to) {
  uint32_t word;
  std::memcpy(&word, &to, 4);
  number.bits = word >> 16;
}

template <typename T>
std::vector<T> random_numbers(Random& random, int64_t size) {
  std::vector<T> numbers(size);
  for (T& number : numbers) set(number, std::uniform_real_distribution<float>(-1, 1)(random));
  return numbers;
}

// A number that is not finite, somewhere.
template <typename T>
void spoil(Random& random, std::vector<T>& numbers) {
  const float infinity = std::numeric_limits<float>::infinity();
  const float bad[] = {infinity, -infinity, std::numeric_limits<float>::quiet_NaN()};
  set(numbers[between(random, 0, numbers.size() - 1)], bad[between(random, 0, 2)]);
}

struct Exact {
  std::vector<double> y, dx, dkernel;
};

// A convolution and its gradients, whose padding is zeros.
template <typename T>
Exact by_definition(const Shape& s, const std::vector<T>& images, const std::vector<T>& weights,
                    const std::vector<T>& gradients) {
  const std::vector<double> zeros(s.in);
  std::vector<double> unread(s.in);
  std::vector<double> x, kernel, dy;
  for (const T number : images) x.push_back(value(number));
  for (const T number : weights) kernel.push_back(value(number));
  for (const T number : gradients) dy.push_back(value(number));
  Exact exact{std::vector<double>(dy.size()), std::vector<double>(x.size()),
              std::vector<double>(kernel.size())};
  for (int64_t window = 0; window < s.batch * s.out_height * s.out_width; ++window) {
    const int64_t image = window / (s.out_height * s.out_width);
    const int64_t top = window / s.out_width % s.out_height * s.stride_y - s.before_y;
    const int64_t left = window % s.out_width * s.stride_x - s.before_x;
    for (int64_t tap = 0; tap < s.kernel_height * s.kernel_width; ++tap) {
      const int64_t row = top + tap / s.kernel_width, column = left + tap % s.kernel_width;
      const bool within = row >= 0 && row < s.height && column >= 0 && column < s.width;
      const int64_t pixel = ((image * s.height + row) * s.width + column) * s.in;
      const double* of_pixel = within ? &x[pixel] : zeros.data();
      double* to_pixel = within ? &exact.dx[pixel] : unread.data();
      for (int64_t c = 0; c < s.in; ++c) {
        const int64_t at = (tap * s.in + c) * s.out;
        double sum = 0;
        for (int64_t n = 0; n < s.out; ++n) {
          const double gradient = dy[window * s.out + n];
          exact.y[window * s.out + n] += of_pixel[c] * kernel[at + n];
          exact.dkernel[at + n] += of_pixel[c] * gradient;
          sum += gradient * kernel[at + n];
        }
        to_pixel[c] += sum;
      }
    }
  }
  return exact;
}

template <typename T>
using Kernel = void (*)(const Threads&, const Shape&, const T*, const T*, T*);

template <typename T>
struct Way {
  std::string name;
  double rounding;  // of a product and its share in the sums
  Kernel<T> forward, input_gradient, kernel_gradient;
};

// Sums of n float32 products of up to 1 go astray by far less than n 2^-21, those of Winograd
// included; a float32 and two bfloat16, by at most 2^-18 of it, of which there are two, and of the
// product of the smaller ones, which is not summed.
template <typename T>
std::vector<Way<T>> ways() {
  const std::string type = sizeof(T) == 4 ? "float32" : "bfloat16";
  std::vector<Way<T>> found{{type + " by vectors", std::exp2(-21), vectors::forward<T>,
                             vectors::input_gradient<T>, vectors::kernel_gradient<T>}};
  if (tiles::permitted())
    found.push_back({type + " by tiles", sizeof(T) == 4 ? std::exp2(-16) : std::exp2(-21),
                     tiles::forward<T>, tiles::input_gradient<T>, tiles::kernel_gradient<T>});
  return found;
}

std::string described(const Shape& s) {
  std::string text;
  for (const int64_t size : {s.batch, s.height, s.width, s.in, s.kernel_height, s.kernel_width,
                             s.stride_y, s.stride_x, s.before_y, s.before_x, s.out_height,
                             s.out_width, s.out})
    text += " " + std::to_string(size);
  return " of batch, height, width, channels, kernel, strides, before, outputs, features" + text;
}

// What the kernels of a norm return.
template <typename T>
struct Norm {
  std::vector<T> total, y, dx, g;
  std::vector<float> sums, gradient_sums;

  bool operator==(const Norm& other) const {
    auto same = [](const auto& a, const auto& b) {
      return a.empty() || !std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0]));
    };
    return same(total, other.total) && same(y, other.y) && same(dx, other.dx) &&
           same(g, other.g) && same(sums, other.sums) && same(gradient_sums, other.gradient_sums);
  }
};

struct Test {
  int64_t failures = 0;
  std::vector<std::unique_ptr<Pool>> pools;

  template <typename T>
  void compare(const std::vector<T>& ours, const std::vector<double>& exact, double tolerance,
               const std::string& what) {
    double worst = 0;
    for (size_t i = 0; i < exact.size(); ++i) {
      if (std::isfinite(value(ours[i])) != std::isfinite(exact[i])) worst = INFINITY;
      if (!std::isfinite(exact[i])) continue;
      const double rounding = sizeof(T) == 4 ? 0 : std::exp2(-8) * std::abs(exact[i]);
      worst = std::max(worst, std::abs(value(ours[i]) - exact[i]) / (tolerance + rounding));
    }
    if (worst > 1) fail(what + " is wrong");
  }

  void fail(const std::string& what) {
    ++failures;
    std::printf("%s\n", what.c_str());
  }

  // The arrays are no larger than they are said to be, so that a sanitizer sees what is beyond them.
  template <typename T>
  void run(Kernel<T> kernel, const Shape& s, const std::vector<T>& a, const std::vector<T>& b,
           const std::vector<double>& exact, double tolerance, const std::string& what) {
    std::vector<T> ours(exact.size()), again(exact.size());
    kernel(pools.front()->threads(), s, a.data(), b.data(), ours.data());
    compare(ours, exact, tolerance, what + described(s));
    const Pool& pool = *pools[1 + (s.batch + s.width) % (pools.size() - 1)];
    kernel(pool.threads(), s, a.data(), b.data(), again.data());
    if (std::memcmp(ours.data(), again.data(), ours.size() * sizeof(T)))
      fail(what + " differs on " + std::to_string(pool.threads().count) + " threads" +
           described(s));
  }

  // A norm with arrays that are added before and behind it, or none.
  template <typename T>
  void norm(int64_t pixels, int64_t channels, float slope, bool additions, Random random) {
    const norm::Images images{pixels * channels, channels};
    const norm::Activation activation{slope};
    const auto x = random_numbers<T>(random, images.size), y = random_numbers<T>(random, images.size);
    const auto dy = random_numbers<T>(random, images.size);
    const auto past = random_numbers<T>(random, images.size);
    const auto numbers = random_numbers<float>(random, 5 * channels);
    auto computed = [&](const Threads& threads) {
      const int64_t added = additions ? images.size : 0;
      Norm<T> n{std::vector<T>(added), std::vector<T>(images.size), std::vector<T>(images.size),
                std::vector<T>(added), std::vector<float>(2 * channels),
                std::vector<float>(2 * channels)};
      auto if_added = [&](const std::vector<T>& array) { return additions ? array.data() : nullptr; };
      norm::sums(threads, images, x.data(), if_added(y), numbers.data(), n.total.data(),
                 n.sums.data());
      norm::forward(threads, images, activation, x.data(), if_added(y), numbers.data(), n.y.data());
      norm::gradient_sums(threads, images, activation, x.data(), if_added(n.y), dy.data(),
                          numbers.data(), n.gradient_sums.data());
      norm::input_gradient(threads, images, activation, x.data(), if_added(n.y), dy.data(),
                           if_added(past), numbers.data(), n.dx.data(),
                           additions ? n.g.data() : nullptr);
      return n;
    };
    const std::string what = " of a norm of " + std::to_string(pixels) + " x " +
                             std::to_string(channels) + ", slope " + std::to_string(slope);
    const Norm<T> ours = computed(pools.front()->threads());
    for (const auto& pool : pools)
      if (!(computed(pool->threads()) == ours))
        fail("something differs on " + std::to_string(pool->threads().count) + " threads" + what);

    std::vector<double> total, z_activated, dx, g_exact, sums(2 * channels), gradient_sums(sums);
    for (int64_t i = 0; i < images.size; ++i) {
      const int64_t c = i % channels;
      auto number = [&](int64_t k) { return double{numbers[k * channels + c]}; };
      if (additions) total.push_back(value(x[i]) + value(y[i]));
      const double summed = (additions ? value(ours.total[i]) : value(x[i])) - number(0);
      sums[c] += summed, sums[channels + c] += summed * summed;
      const double about_mean = value(x[i]) - number(1);
      const double z = about_mean * number(0) + number(2) + (additions ? value(y[i]) : 0);
      z_activated.push_back(z > 0 ? z : slope * z);
      // What is near 0 may be on either side of it.
      const double sign = std::abs(z) < 1e-5 || additions ? value(ours.y[i]) : z;
      const double g = value(dy[i]) * (sign > 0 ? 1 : slope);
      if (additions) g_exact.push_back(g);
      gradient_sums[c] += g, gradient_sums[channels + c] += g * about_mean;
      dx.push_back(g * number(0) + about_mean * number(3) + number(4) +
                   (additions ? value(past[i]) : 0));
    }
    const double rounding = std::exp2(-20);
    compare(ours.total, total, rounding, "x + y" + what);
    compare(ours.y, z_activated, rounding, "y" + what);
    compare(ours.g, g_exact, rounding, "g" + what);
    compare(ours.dx, dx, rounding, "dx" + what);
    compare(ours.sums, sums, 9 * pixels * rounding, "a sum" + what);
    compare(ours.gradient_sums, gradient_sums, 2 * pixels * rounding, "a sum of gradients" + what);
  }

  template <typename T>
  void shape(const Shape& s, Random random) {
    auto x = random_numbers<T>(random, s.batch * s.input_size());
    auto kernel = random_numbers<T>(random, s.kernel_size());
    auto dy = random_numbers<T>(random, s.batch * s.output_size());
    // At a stride of 1 a kernel also meets zeros around gradients, as XLA's does.
    const bool strided = s.stride_y > 1 || s.stride_x > 1;
    std::vector<T>* const arrays[] = {&x, &dy, &kernel};
    for (const bool spoilt : {false, true}) {
      if (spoilt) spoil(random, *arrays[between(random, 0, strided ? 2 : 1)]);
      const Exact exact = by_definition(s, x, kernel, dy);
      const int64_t taps = s.kernel_height * s.kernel_width;
      for (const Way<T>& way : ways<T>()) {
        const std::string name = way.name + (spoilt ? ", not all of it finite" : "");
        run(way.forward, s, x, kernel, exact.y, taps * s.in * way.rounding, "y of " + name);
        run(way.input_gradient, s, dy, kernel, exact.dx, taps * s.out * way.rounding,
            "dx of " + name);
        run(way.kernel_gradient, s, x, dy, exact.dkernel,
            s.batch * s.out_height * s.out_width * way.rounding, "dkernel of " + name);
      }
    }
  }
};

int main(int64_t shapes, uint64_t seed) {
  Random random(seed);
  Test test;
  for (const int64_t count : {1, 2, 3, 7}) test.pools.push_back(std::make_unique<Pool>(count));
  std::vector<Shape> all(std::begin(kLarge), std::end(kLarge));
  for (int64_t i = 0; i < shapes; ++i) all.push_back(random_shape(random));
  for (const Shape& s : all) {
    const Random numbers(random());
    test.shape<float>(s, numbers);
    test.shape<bf16>(s, numbers);
  }
  // Fewer pixels than a row of vectors takes, and more; whole rows and what is left over of them.
  for (int64_t i = 0; i < shapes / 5; ++i) {
    const int64_t pixels = size(random, 3000), of_pixel = size(random, 400);
    const float slope = float(between(random, 0, 2)) / 2;
    const Random numbers(random());
    test.norm<float>(pixels, of_pixel, slope, i % 2, numbers);
    test.norm<bf16>(pixels, of_pixel, slope, i % 2, numbers);
  }
  for (const auto& way : ways<float>()) std::printf("%s, ", way.name.c_str());
  for (const auto& way : ways<bf16>()) std::printf("%s, ", way.name.c_str());
  std::printf("%d lanes\n", kLanes);
  return test.failures > 0;
}

}  // namespace
}  // namespace crest

int main(int, char** arguments) {
  return crest::main(std::stol(arguments[1]), std::stoul(arguments[2]));
}
