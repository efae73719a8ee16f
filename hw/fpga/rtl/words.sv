// Beats of PORT bits made words of BITS bits, several a beat or one from several beats (BITS and PORT are powers of two). Of every
// TOTAL words that come, the first WORDS go out; the others fill up the last burst of a region.
module dp_words #(
  parameter int PORT = 128, BITS = 32,
  parameter int WORDS = 100, TOTAL = 128
) (
  input  logic clk, rst,
  input  logic [PORT-1:0] beat, input logic load, output logic want,
  output logic [BITS-1:0] m_data, output logic m_valid, input logic m_ready
);
  localparam int WW = $clog2(TOTAL + 1);
  logic [WW-1:0] at;
  logic some;                        // a word stands ready
  wire real_word = at < WW'(WORDS);
  wire step = some && (m_ready || !real_word);
  assign m_valid = some && real_word;
  always_ff @(posedge clk)
    if (rst) at <= '0;
    else if (step) at <= at == WW'(TOTAL-1) ? '0 : at + 1'b1;

  if (BITS <= PORT) begin : g_split
    localparam int R = PORT / BITS, RW = R > 1 ? $clog2(R) : 1;
    logic [RW-1:0] part;
    logic [R-1:0][BITS-1:0] hold;
    assign m_data = hold[part];
    assign want = !some;
    always_ff @(posedge clk) begin
      if (load) hold <= beat;
      if (rst) begin
        some <= 1'b0; part <= '0;
      end else begin
        if (load) some <= 1'b1; else if (step && part == RW'(R-1)) some <= 1'b0;
        if (step) part <= part == RW'(R-1) ? '0 : part + 1'b1;
      end
    end
  end else begin : g_join
    localparam int R = BITS / PORT, RW = $clog2(R + 1);
    logic [RW-1:0] parts;
    assign some = parts == RW'(R);
    assign want = !some;
    always_ff @(posedge clk) begin
      if (load) m_data[parts*PORT +: PORT] <= beat;
      if (rst) parts <= '0;
      else if (load) parts <= parts + 1'b1;
      else if (step) parts <= '0;
    end
  end
endmodule
