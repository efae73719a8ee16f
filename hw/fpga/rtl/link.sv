// Host link over bytes: packets with CRC-16, stop-and-wait in both directions, so that nothing is lost on a noisy line or
// under back-pressure.
//   host:   A5 type seq len payload crc_hi crc_lo     type 1 write, 2 read, 3 info
//   answer: 5A code seq len payload crc_hi crc_lo     code 81 taken, 82 busy, 83 damaged, 84 data, 85 info
// A write repeated with the same seq is answered but not taken twice; a read repeated with the same seq gets the same data.
// Busy means that the write before has not drained into the design yet (it waits for results to be read).
// CRC-16/CCITT-FALSE over everything after the first byte.
module dp_link #(
  parameter int IN_BYTES = 1, OUT_BYTES = 1,
  parameter logic [63:0] HASH = '0
) (
  input  logic clk, rst,
  input  logic [7:0] rx_data, input logic rx_valid,
  output logic [7:0] tx_data, output logic tx_valid, input logic tx_ready,
  output logic restart,                  // a new session: the design starts over
  output logic [IN_BYTES*8-1:0] m_data, output logic m_valid, input logic m_ready,
  input  logic [OUT_BYTES*8-1:0] s_data, input logic s_valid, output logic s_ready
);
  localparam logic [7:0] TAKEN = 8'h81, BUSY = 8'h82, DAMAGED = 8'h83, DATA = 8'h84, INFO = 8'h85;
  localparam logic [79:0] ABOUT = {8'(OUT_BYTES), 8'(IN_BYTES), HASH};
  localparam int INW = $clog2(IN_BYTES + 1), OUTW = $clog2(OUT_BYTES + 1);

  function automatic logic [15:0] crc16(input logic [15:0] crc, input logic [7:0] data);
    logic [15:0] c;
    c = crc ^ {data, 8'h00};
    for (int i = 0; i < 8; i++) c = c[15] ? (c << 1) ^ 16'h1021 : c << 1;
    return c;
  endfunction

  // ---- receive a packet into one of two banks
  typedef enum logic [2:0] {SYNC, TYPE, SEQ, LEN, BODY, CRC1, CRC0} rx_t;
  rx_t state;
  logic [7:0] kind, seq, len, at;
  logic [15:0] crc;
  logic crc_hi_good, arrived, good, fill;
  logic [19:0] silence;
  logic [7:0] bank [512];
  always_ff @(posedge clk) begin
    arrived <= 1'b0;
    silence <= rx_valid ? '0 : silence + 1'b1;
    if (rx_valid) begin
      if (state != SYNC && state != CRC1 && state != CRC0) crc <= crc16(crc, rx_data);
      case (state)
        SYNC: if (rx_data == 8'hA5) begin state <= TYPE; crc <= 16'hFFFF; end
        TYPE: begin kind <= rx_data; state <= SEQ; end
        SEQ: begin seq <= rx_data; state <= LEN; end
        LEN: begin len <= rx_data; at <= '0; state <= rx_data == 0 || kind != 8'd1 ? CRC1 : BODY; end
        BODY: begin at <= at + 1'b1; if (at == len - 1'b1) state <= CRC1; end
        CRC1: begin crc_hi_good <= rx_data == crc[15:8]; state <= CRC0; end
        default: begin good <= crc_hi_good && rx_data == crc[7:0]; arrived <= 1'b1; state <= SYNC; end
      endcase
    end else if (&silence) state <= SYNC;   // a packet that broke off
    if (rst) begin state <= SYNC; silence <= '0; arrived <= 1'b0; end
  end
  always_ff @(posedge clk) if (rx_valid && state == BODY) bank[{fill, at}] <= rx_data;

  // ---- drain an accepted bank into the design
  logic [7:0] left, from;
  logic drain_bank, fetched;
  logic [7:0] fetch;
  logic [INW-1:0] have;
  wire drained = left == 0 && !fetched;
  wire take = fetched && (!m_valid || m_ready);
  wire fetching = left != 0 && (!fetched || take);
  always_ff @(posedge clk) if (fetching) fetch <= bank[{drain_bank, from}];

  // ---- results into the answer buffer
  logic [7:0] out [256];
  logic [7:0] out_len, out_want, out_seq;
  logic collecting, out_known;
  logic [OUT_BYTES*8-1:0] hold;
  logic [OUTW-1:0] held;
  assign s_ready = held == 0;
  wire collect = collecting && held != 0 && out_len != out_want;
  always_ff @(posedge clk) if (collect) out[out_len] <= hold[7:0];

  // ---- answers
  typedef enum logic [3:0] {IDLE, GATHER, HEAD, CODE, ASEQ, ALEN, FETCH, ABODY, ACRC1, ACRC0} tx_t;
  tx_t answer;
  logic [7:0] code, answer_len, sent, byte_, write_seq;
  logic write_known;
  logic [3:0] resting;
  assign restart = resting != 0;
  logic [15:0] answer_crc;
  always_ff @(posedge clk) byte_ <= code == INFO ? ABOUT[sent[3:0]*8 +: 8] : out[sent];
  always_comb begin
    tx_valid = answer inside {HEAD, CODE, ASEQ, ALEN, ABODY, ACRC1, ACRC0};
    case (answer)
      HEAD: tx_data = 8'h5A;
      CODE: tx_data = code;
      ASEQ: tx_data = seq;
      ALEN: tx_data = answer_len;
      ABODY: tx_data = byte_;
      ACRC1: tx_data = answer_crc[15:8];
      default: tx_data = answer_crc[7:0];
    endcase
  end
  wire said = tx_valid && tx_ready;

  always_ff @(posedge clk) begin
    // drain
    if (m_valid && m_ready) m_valid <= 1'b0;
    if (fetching) begin from <= from + 1'b1; left <= left - 1'b1; fetched <= 1'b1; end
    else if (take) fetched <= 1'b0;
    if (take) begin
      m_data <= IN_BYTES == 1 ? (IN_BYTES*8)'(fetch) : (IN_BYTES*8)'({fetch, m_data} >> 8);
      have <= have == INW'(IN_BYTES-1) ? '0 : have + 1'b1;
      m_valid <= have == INW'(IN_BYTES-1);
    end
    // results
    if (s_valid && s_ready) begin hold <= s_data; held <= OUTW'(OUT_BYTES); end
    if (collect) begin
      hold <= hold >> 8; held <= held - 1'b1; out_len <= out_len + 1'b1;
    end
    // commands
    case (answer)
      IDLE: if (arrived) begin
        answer <= HEAD; answer_len <= '0; sent <= '0;
        if (!good) code <= DAMAGED;
        else if (kind == 8'd1) begin
          if (write_known && seq == write_seq) code <= TAKEN;
          else if (!drained) code <= BUSY;
          else begin
            code <= TAKEN; write_seq <= seq; write_known <= 1'b1;
            drain_bank <= fill; fill <= !fill; from <= '0; left <= len;
          end
        end else if (kind == 8'd2) begin
          code <= DATA; answer <= GATHER;
          if (!out_known || seq != out_seq) begin
            out_seq <= seq; out_known <= 1'b1; out_len <= '0; out_want <= len; collecting <= 1'b1;
          end
        end else begin
          code <= INFO; answer_len <= 8'd10; write_known <= 1'b0; out_known <= 1'b0;
          m_valid <= 1'b0; fetched <= 1'b0; left <= '0; have <= '0; held <= '0; resting <= '1;
        end
      end
      GATHER: if (!collecting || out_len == out_want || (held == 0 && !s_valid)) begin
        collecting <= 1'b0; answer <= HEAD; answer_len <= out_len;
      end
      HEAD: if (said) begin answer <= CODE; answer_crc <= 16'hFFFF; end
      CODE: if (said) answer <= ASEQ;
      ASEQ: if (said) answer <= ALEN;
      ALEN: if (said) answer <= answer_len == 0 ? ACRC1 : FETCH;
      FETCH: answer <= ABODY;
      ABODY: if (said) begin sent <= sent + 1'b1; answer <= sent == answer_len - 1'b1 ? ACRC1 : FETCH; end
      ACRC1: if (said) answer <= ACRC0;
      default: if (said) answer <= IDLE;
    endcase
    if (said && answer inside {CODE, ASEQ, ALEN, ABODY}) answer_crc <= crc16(answer_crc, tx_data);
    if (restart) begin resting <= resting - 1'b1; held <= '0; m_valid <= 1'b0; end
    if (rst) begin
      resting <= '0;
      m_valid <= 1'b0; fetched <= 1'b0; left <= '0; have <= '0; held <= '0; collecting <= 1'b0; out_known <= 1'b0;
      write_known <= 1'b0; answer <= IDLE; fill <= 1'b0; out_len <= '0;
    end
  end
endmodule
