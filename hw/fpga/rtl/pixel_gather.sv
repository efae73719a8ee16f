// Out channel i of a pixel is in channel INDEX[i], from a memory of two pixels: one is written, IN_PAR channels a cycle, while
// the other is read, OUT_PAR channels a cycle from as many copies. Slices, splits and shuffles of streams that are not fast.
module dp_pixel_gather #(
  parameter int WIDTH = 8,
  parameter int N_IN = 4, N_OUT = 2,
  parameter int IN_PAR = 1, OUT_PAR = 1,   // divide N_IN and N_OUT
  parameter logic [N_OUT*16-1:0] INDEX = '0,
  parameter RAM = "auto"
) (
  input  logic clk, rst,
  input  logic [IN_PAR*WIDTH-1:0] s_data, input logic s_valid, output logic s_ready,
  output logic [OUT_PAR*WIDTH-1:0] m_data, output logic m_valid, input logic m_ready
);
  localparam int IN_BEATS = N_IN / IN_PAR, OUT_BEATS = N_OUT / OUT_PAR;
  localparam int IW = IN_BEATS > 1 ? $clog2(IN_BEATS) : 1, OW = OUT_BEATS > 1 ? $clog2(OUT_BEATS) : 1;
  localparam int PW = IN_PAR > 1 ? $clog2(IN_PAR) : 1;

  logic [IW-1:0] wp; logic [OW-1:0] rp;
  logic write_half, read_half;
  logic [1:0] whole;                       // halves that hold a pixel
  wire push = s_valid && s_ready;
  assign s_ready = !whole[write_half];
  wire last_in = wp == IW'(IN_BEATS-1), last_out = rp == OW'(OUT_BEATS-1);
  wire go = whole[read_half] && (!m_valid || m_ready);

  for (genvar k = 0; k < OUT_PAR; k++) begin : g_port
    (* ram_style = RAM *) logic [IN_PAR*WIDTH-1:0] mem [2*IN_BEATS];
    wire [OUT_BEATS-1:0][IW-1:0] beat;     // where each output channel stands: beat and place in it
    wire [OUT_BEATS-1:0][PW-1:0] place;
    for (genvar o = 0; o < OUT_BEATS; o++) begin : g_index
      localparam int AT = int'(INDEX[(o*OUT_PAR+k)*16 +: 16]);
      assign beat[o] = IW'(AT / IN_PAR);
      assign place[o] = PW'(AT % IN_PAR);
    end
    logic [IN_PAR*WIDTH-1:0] q;
    logic [PW-1:0] at;
    always_ff @(posedge clk) begin
      if (push) mem[write_half ? IN_BEATS + 32'(wp) : 32'(wp)] <= s_data;
      if (go) begin
        q <= mem[read_half ? IN_BEATS + 32'(beat[rp]) : 32'(beat[rp])];
        at <= place[rp];
      end
    end
    assign m_data[k*WIDTH +: WIDTH] = IN_PAR > 1 ? q[at*WIDTH +: WIDTH] : q[WIDTH-1:0];
  end

  always_ff @(posedge clk) begin
    if (rst) begin
      wp <= '0; rp <= '0; write_half <= 1'b0; read_half <= 1'b0; whole <= '0; m_valid <= 1'b0;
    end else begin
      if (push) begin
        wp <= last_in ? '0 : wp + 1'b1;
        if (last_in) begin write_half <= !write_half; whole[write_half] <= 1'b1; end
      end
      if (!m_valid || m_ready) m_valid <= go;
      if (go) begin
        rp <= last_out ? '0 : rp + 1'b1;
        if (last_out) begin read_half <= !read_half; whole[read_half] <= 1'b0; end
      end
    end
  end
endmodule
