// Drives a Verilated design with AXI streams: inputs from in<i>.bin, outputs to out<i>.bin, random stalls, cycle counts.
#pragma once
#include <verilated.h>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <functional>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#define PORT(x) reinterpret_cast<uint8_t*>(&(x))

struct In {
    int bytes; uint8_t* data; CData* valid; CData* ready;
    std::vector<uint8_t> content; size_t at = 0; bool offered = false; double credit = 0;
};
struct Out {
    int bytes; uint8_t* data; CData* valid; CData* ready;
    long frame_beats, expected = 0, got = 0; std::vector<uint8_t> content;
};

// Memory behind an AXI4 read port: answers in order, each burst after 50 to 90 cycles and a beat in 9 of 10 cycles at most.
struct Memory {
    int bytes = 0; uint64_t base = 0; QData* araddr = nullptr; CData *arlen = nullptr, *arvalid = nullptr, *arready = nullptr;
    uint8_t* rdata = nullptr; CData *rlast = nullptr, *rvalid = nullptr;
    std::vector<uint8_t> content;
    struct Burst { uint64_t at; int beats; long due; };
    std::deque<Burst> bursts;
    long beats = 0;

    void offer(long cycle, std::mt19937_64& random, double stall) {
        std::uniform_real_distribution<double> chance(0, 1);
        *arready = bursts.size() < 16 && chance(random) >= stall;
        const bool can = !bursts.empty() && bursts.front().due <= cycle && chance(random) >= (stall > 0.1 ? stall : 0.1);
        *rvalid = can;
        if (can) {
            memcpy(rdata, &content[bursts.front().at], bytes);
            *rlast = bursts.front().beats == 1;
        }
    }
    bool take(long cycle, std::mt19937_64& random) {
        if (*rvalid) {
            beats++;
            bursts.front().at += bytes;
            if (--bursts.front().beats == 0) bursts.pop_front();
        }
        if (*arvalid && *arready) {
            const uint64_t at = *araddr - base;
            const int count = *arlen + 1;
            if (*araddr < base || at + uint64_t(count) * bytes > content.size()) return false;
            bursts.push_back({at, count, cycle + 50 + long(random() % 41)});
        }
        return true;
    }
};

template <class Top> struct Harness {
    VerilatedContext context;
    Top* top;
    int argc; char** argv;
    std::vector<In> ins;
    std::vector<Out> outs;
    Memory mem;

    Harness(int c, char** v) : argc(c), argv(v) {
        context.commandArgs(c, v);
        top = new Top{&context};
    }
    void input(int bytes, uint8_t* data, CData& valid, CData& ready) { ins.push_back({bytes, data, &valid, &ready}); }
    void memory(int bytes, uint64_t base, QData* araddr, CData& arlen, CData& arvalid, CData& arready, uint8_t* rdata, CData& rlast, CData& rvalid) {
        mem = {bytes, base, araddr, &arlen, &arvalid, &arready, rdata, &rlast, &rvalid};
    }
    void output(int bytes, uint8_t* data, CData& valid, CData& ready, long beats) {
        outs.push_back({bytes, data, &valid, &ready, beats});
    }

    int run() {
        const double stall_in = atof(argv[2]), stall_out = atof(argv[3]), pace = atof(argv[5]);
        const long idle_limit = atol(argv[6]);
        std::mt19937_64 random(strtoull(argv[4], nullptr, 10));
        std::uniform_real_distribution<double> chance(0, 1);
        for (size_t i = 0; i < ins.size(); i++) {
            std::ifstream file("in" + std::to_string(i) + ".bin", std::ios::binary);
            ins[i].content.assign(std::istreambuf_iterator<char>(file), {});
        }
        if (mem.bytes) {
            std::ifstream file("memory.bin", std::ios::binary);
            mem.content.assign(std::istreambuf_iterator<char>(file), {});
        }
        for (size_t i = 0; i < outs.size(); i++) outs[i].expected = atol(argv[7 + i]);
        long cycle = 0, idle = 0, first_beat_in = -1, first_frame = -1;
        std::vector<long> ends;
        bool stuck = false;
        top->rst_n = 0;
        for (auto& i : ins) *i.valid = 0;
        if (mem.bytes) *mem.rvalid = 0;
        for (auto& o : outs) *o.ready = 0;
        for (int k = 0; k < 8; k++) { tick(); }
        top->rst_n = 1;
        for (;;) {
            top->clk = 0;
            for (auto& i : ins) {
                if (pace > 0 && i.credit < 4) i.credit += 1.0 / pace;
                const bool more = (i.at + 1) * i.bytes <= i.content.size();
                if (!i.offered && more && (pace <= 0 || i.credit >= 1) && (stall_in <= 0 || chance(random) >= stall_in)) {
                    i.offered = true;
                    if (pace > 0) i.credit -= 1;
                }
                *i.valid = i.offered;
                if (i.offered) memcpy(i.data, &i.content[i.at * i.bytes], i.bytes);
            }
            for (auto& o : outs) *o.ready = stall_out <= 0 || chance(random) >= stall_out;
            if (mem.bytes) mem.offer(cycle, random, stall_in);
            top->eval();
            if (mem.bytes && !mem.take(cycle, random)) { fprintf(stderr, "%%Error: a read outside the image\n"); stuck = true; break; }
            bool moved = false, done = true;
            for (auto& i : ins)
                if (*i.valid && *i.ready) {
                    if (first_beat_in < 0) first_beat_in = cycle;
                    i.at++; i.offered = false; moved = true;
                }
            for (size_t k = 0; k < outs.size(); k++) {
                auto& o = outs[k];
                if (*o.valid && *o.ready) {
                    o.content.insert(o.content.end(), o.data, o.data + o.bytes);
                    o.got++; moved = true;
                    if (k == 0 && o.got % o.frame_beats == 0) {
                        ends.push_back(cycle);
                        if (first_frame < 0) first_frame = cycle - first_beat_in + 1;
                    }
                }
                done = done && o.got >= o.expected;
            }
            top->clk = 1;
            top->eval();
            context.timeInc(1);
            cycle++;
            idle = moved ? 0 : idle + 1;
            if (done) break;
            if (idle > idle_limit || context.gotFinish()) { stuck = true; break; }
        }
        top->final();
        for (size_t i = 0; i < outs.size(); i++) {
            std::ofstream file("out" + std::to_string(i) + ".bin", std::ios::binary);
            file.write(reinterpret_cast<const char*>(outs[i].content.data()), outs[i].content.size());
        }
        FILE* json = fopen("result.json", "w");
        fprintf(json, "{\"cycles\": %ld, \"first_frame\": %ld, \"stuck\": %s, \"memory_beats\": %ld, \"ends\": [", cycle, first_frame, stuck ? "true" : "false", mem.beats);
        for (size_t i = 0; i < ends.size(); i++) fprintf(json, "%s%ld", i ? ", " : "", ends[i]);
        fprintf(json, "]}\n");
        fclose(json);
        return 0;
    }
    void tick() {
        top->clk = 0; top->eval();
        top->clk = 1; top->eval();
        context.timeInc(1);
    }
};
