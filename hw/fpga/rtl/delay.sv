// Delay line: `y` is the `x` of DEPTH enabled clocks ago. One word is a register, more are a circular buffer in a memory.
module dp_delay #(
  parameter int WIDTH = 8,
  parameter int DEPTH = 4
) (
  input  logic clk, rst, en,
  input  logic [WIDTH-1:0] x,
  output logic [WIDTH-1:0] y
);
  if (DEPTH == 1) begin : g_register
    always_ff @(posedge clk) if (en) y <= x;
  end else begin : g_memory
    localparam int AW = $clog2(DEPTH);
    (* no_rw_check *) logic [WIDTH-1:0] mem [DEPTH];
    logic [AW-1:0] at;
    wire [AW-1:0] next = at == AW'(DEPTH-1) ? '0 : at + 1'b1;  // read one word ahead of the write: never the same word
    always_ff @(posedge clk) begin
      if (en) begin
        mem[at] <= x;
        y <= mem[next];
      end
      if (rst) at <= '0;
      else if (en) at <= next;
    end
  end
endmodule
