// The ULX3S design on a pseudo-terminal: bytes from the file descriptor argv[1] become serial bits and back.
// argv[2]: clock cycles per bit; argv[3]: one byte in so many is damaged on its way in (0: none).
#include "Vtop.h"
#include <verilated.h>
#include <cstdlib>
#include <unistd.h>
#include <fcntl.h>
#include <random>

int main(int argc, char** argv) {
    VerilatedContext context;
    context.commandArgs(argc, argv);
    Vtop top{&context};
    const int fd = atoi(argv[1]), div = atoi(argv[2]), noise = atoi(argv[3]);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    std::mt19937 random(1);
    int send_bits = 0, send_wait = 0, get_bits = -1, get_wait = 0;
    unsigned send = 0, get = 0;
    long idle = 0;
    top.ftdi_txd = 1;
    for (;;) {
        if (send_bits == 0) {
            unsigned char byte;
            const int n = idle % 64 == 0 ? read(fd, &byte, 1) : -1;
            if (n == 0) return 0;
            if (n == 1) {
                if (noise && random() % noise == 0) byte ^= 1 << random() % 8;
                send = (1u << 9) | (byte << 1); send_bits = 10; send_wait = div; idle = 0;
            } else idle++;
        }
        top.ftdi_txd = send_bits ? send & 1 : 1;
        if (send_bits && --send_wait == 0) { send >>= 1; send_bits--; send_wait = div; }
        top.clk_25mhz = 0; top.eval();
        top.clk_25mhz = 1; top.eval();
        if (get_bits < 0) {
            if (!top.ftdi_rxd) { get_bits = 0; get_wait = div + div / 2; get = 0; }
        } else if (--get_wait == 0) {
            if (get_bits == 8) {
                const unsigned char byte = get;
                while (write(fd, &byte, 1) != 1) {}
                get_bits = -1;
            } else { get |= top.ftdi_rxd << get_bits++; get_wait = div; }
        }
    }
}
